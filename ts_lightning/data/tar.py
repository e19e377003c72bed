"""One strict pass over a tar: members in order, names, grouping into records, and the end that must be there."""

import os
import re
import sys
import tarfile
from typing import IO, NamedTuple

from ts_lightning.data.images import EXTENSIONS
from ts_lightning.data.sample import Sample

Member = tuple[str, int, int]  # extension, offset, size
_SPLIT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")  # webdataset's rule: the key ends at the first dot of the file name
_SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's names for remarks about the tar itself
_IMAGE = re.compile(rf"(?:(\d+)\.)?(?:{'|'.join(EXTENSIONS)})")
_BLOCK = tarfile.BLOCKSIZE
MAX_JSON, MAX_MEMBER = 16 << 20, 256 << 20  # bytes: a record and a picture are read whole


class Records(NamedTuple):
    """`items`: (key, members) of every record; `bad`: key -> ":key: why its JSON is no valid sample".

    `tags`: those of every record, joined by tabs.
    """

    items: list[tuple[str, list[Member]]]
    bad: dict[str, str]
    tags: list[str]


def scan_tar(path: str) -> Records:
    """Every record of a plain tar. Raises ValueError, one line with the file, key, what was seen and expected, for:

    an empty, cut or compressed file, bytes after the end, links, devices and holes, unsafe names, members too large to
    be a record or a picture, a key that comes twice or in two places, unknown members, a record without its JSON or
    without the pictures that its JSON names.
    """
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"{path}: seen an empty file (0 bytes), expected a tar with at least one record")
    with open(path, "rb") as file:
        items = _group(path, _members(path, file, size))
        bad: dict[str, str] = {}
        tags: list[str] = []
        for key, members in items:
            problem, own = _check_record(path, key, members, file)
            tags.append(sys.intern("\t".join(own)))
            if problem:
                bad[key] = problem
    return Records(items, bad, tags)


def _members(path: str, file: IO[bytes], size: int) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every file in the tar; checks that data and end blocks are all there."""
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                end = info.offset_data + info.size
                limit = MAX_JSON if info.name.lower().endswith(".json") else MAX_MEMBER
                if info.isreg() and end > size:
                    raise ValueError(
                        f"{path}: member {info.name}: seen {size - info.offset_data} of {info.size} bytes, "
                        "expected all of them (the tar is cut)"
                    )
                if info.isdir():
                    continue
                if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                    raise ValueError(f"{path}: member {info.name!r}: seen a link or device, expected a regular file")
                if not _safe(info.name):
                    raise ValueError(f"{path}: member {info.name!r}: seen an unsafe name, expected a relative path")
                if not 0 <= info.size <= limit:
                    raise ValueError(f"{path}: member {info.name!r}: seen {info.size} bytes, expected at most {limit}")
                if not _SKIPPED.match(info.name):
                    members.append((info.name, info.offset_data, info.size))
            end = tar.offset
    except tarfile.TarError as error:
        last = f" after member {members[-1][0]}" if members else ""
        raise ValueError(f"{path}: seen a cut or unreadable tar ({error}){last}, expected a whole plain tar") from None
    file.seek(end)
    tail = file.read(2 * _BLOCK)
    last = members[-1][0] if members else "nothing"
    if len(tail) < 2 * _BLOCK and not tail.strip(b"\0"):
        raise ValueError(f"{path}: seen the end right after {last}, expected two empty blocks (the tar is cut)")
    while tail:
        if tail.strip(b"\0"):
            raise ValueError(f"{path}: seen unreadable bytes after {last}, expected a member or the end of the tar")
        tail = file.read(1 << 20)
    if not members:
        raise ValueError(f"{path}: seen an empty tar (no members), expected at least one record")
    return members


def _safe(name: str) -> bool:
    parts = name.split("/")
    return not (name.startswith("/") or ".." in parts or "\\" in name or any(ord(c) < 32 for c in name))


def _group(path: str, members: list[tuple[str, int, int]]) -> list[tuple[str, list[Member]]]:
    """Neighbours with one key make a record, as in webdataset; a key that returns is an error here."""
    items: list[tuple[str, list[Member]]] = []
    seen: dict[str, set[str]] = {}
    for name, offset, size in members:
        match = _SPLIT.fullmatch(name)
        if match is None:
            raise ValueError(f"{path}: member {name!r}: seen no key or extension, expected KEY.json, KEY.jpg")
        key, extension = match[1], match[2].lower()
        if extension != "json" and not _IMAGE.fullmatch(extension):
            raise ValueError(f"{path}:{key}: seen the member {name!r}, expected json, {', '.join(EXTENSIONS)}")
        if extension in seen.get(key, ()):
            raise ValueError(f"{path}:{key}: seen a duplicate key ({name!r} twice), expected unique keys")
        if key in seen and items[-1][0] != key:
            raise ValueError(f"{path}:{key}: seen {name!r} away from its record, expected its members side by side")
        if key not in seen:
            items.append((key, []))
        seen.setdefault(key, set()).add(extension)
        items[-1][1].append((extension, offset, size))
    return items


def image_order(extension: str) -> int:
    """0 for "jpg", k for "k.jpg", -1 for "json"."""
    match = _IMAGE.fullmatch(extension)
    return -1 if match is None else int(match[1] or 0)


def _check_record(path: str, key: str, members: list[Member], file: IO[bytes]) -> tuple[str | None, list[str]]:
    """Why the record's JSON is no valid sample, or None, and its tags; ValueError when JSON or pictures are missing."""
    stored = [m for m in members if m[0] == "json"]
    numbers = sorted(image_order(name) for name, _, _ in members if name != "json")
    if not stored:
        raise ValueError(f"{path}:{key}: seen a record without json, expected {key}.json")
    file.seek(stored[0][1])
    problem, tags = None, []
    try:
        sample = Sample.from_json(file.read(stored[0][2]), key)
        expected, tags = len(sample.images), list(sample.tags)
    except ValueError as error:
        expected, problem = max(1, len(numbers)), str(error)
    if not numbers and expected:
        raise ValueError(f"{path}:{key}: seen a record without image, expected {expected} (as its JSON says)")
    if numbers != list(range(expected)):
        raise ValueError(f"{path}:{key}: seen images numbered {numbers}, expected {expected} counted from 0")
    return problem, tags
