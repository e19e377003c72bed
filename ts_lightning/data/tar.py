"""One strict pass over a tar: members in order, names, grouping into records, and the end that must be there.

The headers are read here and not by tarfile, so that a stranger's tar costs 64 KiB and one line at most: tarfile reads
a long name of any size into memory and follows a chain of headers by recursion.
"""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import IO, NamedTuple
from zlib import adler32, crc32

from ts_lightning.data.images import EXTENSIONS
from ts_lightning.data.quick import quick_look
from ts_lightning.data.record import Questions, question_key
from ts_lightning.data.sample import MAX_JSON
from ts_lightning.grounding.still_pictures import header_fault

MAX_MEMBER, MAX_META, MAX_TAIL = 256 << 20, 64 << 10, 1 << 20  # bytes: a picture, a long name, zeros behind the end
_MAX_CHAIN = 4  # headers that may say more about one member
_BLOCK, _CHUNK = 512, 1 << 20
_BLANKS = 32 - 8 * 32  # the last of a sum's own bytes, less the eight blanks that it is counted as
_SPLIT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)")  # webdataset's rule: the key ends at the first dot of the file name
_SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's names for remarks about the tar itself
_IMAGE = re.compile(rf"(?:([0-9]{{1,4}})\.)?(?:{'|'.join(EXTENSIONS)})")
_SAFE = re.compile(r"[^\x00-\x1f\\/][^\x00-\x1f\\]{0,1023}")  # a relative path without control characters
_USUAL = re.compile(rb"([0-7]{11})\0.{12}([0-7]{6})\0 0", re.DOTALL)  # size, time, sum and kind of a regular file
_PAX = re.compile(rb"([0-9]{1,6}) ([^=]+)=")
_FILE, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX_NEXT, _PAX_ALL = b"0\0", b"5", b"L", b"K", b"x", b"g"

ReadAt = Callable[[int, int], bytes]  # (offset, count) -> the bytes there, fewer at the end of the file


class Member(NamedTuple):
    """A file of a tar: `offset` and `size` of its bytes, `end` is where the next header lies."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + -(-self.size // _BLOCK) * _BLOCK


_UNREADABLE = "seen a cut or unreadable tar"


class NotATar(ValueError):
    """What is wrong with a header, without the name of the file."""


class Record(NamedTuple):
    """`members` by extension: (offset, size, crc32); `questions`: (tags joined by tabs, why it is no valid sample)."""

    key: str
    members: dict[str, tuple[int, int, int]]
    questions: list[tuple[str, str | None]]


class Scan(NamedTuple):
    """A tar as it was read, from the first byte to the last."""

    records: list[Record]
    size: int
    mtime_ns: int
    sha256: str


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> IO[bytes]:
    """A regular file, opened without waiting; ValueError for a pipe, a device, or more than `most` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would wait for ever
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise ValueError(f"{os.fspath(path)}: seen a folder, pipe or device, expected a regular file")
    if most is not None and info.st_size > most:
        os.close(descriptor)
        raise ValueError(f"{os.fspath(path)}: seen {info.st_size} bytes, expected at most {most}")
    return open(descriptor, "rb", buffering=_CHUNK)


def scan_tar(path: str) -> Scan:
    """Every record of a plain tar. Raises ValueError, one line with the file, key, what was seen and expected, for:

    an empty, cut or compressed file, bytes after the end, links, devices and holes, unsafe names, members too large to
    be a record or a picture, a key that comes twice or in two places, unknown members, a record without its JSON or
    without the pictures that its JSON names.
    """
    with open_regular(path) as file:
        info = os.fstat(file.fileno())
        if info.st_size == 0:
            raise ValueError(f"{path}: seen an empty file (0 bytes), expected a tar with at least one record")
        forward = _Forward(file)
        records = _records(path, _members(path, forward, info.st_size))
        forward.skip_to(info.st_size)
    return Scan(records, info.st_size, info.st_mtime_ns, forward.sha256.hexdigest())


def _records(path: str, members: Iterable[tuple[Member, int, bytes]]) -> list[Record]:
    """Neighbours with one key make a record, as in webdataset; a key that returns is an error here.

    Every question about a picture beyond the limits is a bad one.
    """
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    parsed: dict[str, tuple[int | None, list[tuple[str, str | None]]]] = {}  # pictures that its JSON names, questions
    faults: dict[str, str] = {}
    last = None
    for (name, offset, size), crc, data in members:
        key, extension = split_name(name)
        if not key:
            raise ValueError(f"{path}: member {name!r}: seen no key or extension, expected KEY.json, KEY.jpg")
        if extension != "json" and image_order(extension) < 0:
            raise ValueError(f"{path}:{key}: seen the member {name!r}, expected json, {', '.join(EXTENSIONS)}")
        parts = found.setdefault(key, {})
        if extension in parts:
            raise ValueError(f"{path}:{key}: seen a duplicate key ({name!r} twice), expected unique keys")
        if parts and key != last:
            raise ValueError(f"{path}:{key}: seen {name!r} away from its record, expected its members side by side")
        parts[extension], last = (offset, size, crc), key
        if extension == "json":
            parsed[key] = _questions(data, key)
        elif (why := header_fault(data)) is not None:
            faults.setdefault(key, f"image: seen {why}")
    if not found:
        raise ValueError(f"{path}: seen an empty tar (no members), expected at least one record")
    records = []
    for key, parts in found.items():
        if key not in parsed:
            raise ValueError(f"{path}:{key}: seen a record without json, expected {key}.json")
        numbers = sorted([image_order(name) for name in parts if name != "json"])
        count, questions = parsed[key]
        expected = max(1, len(numbers)) if count is None else count
        if not numbers and expected:
            raise ValueError(f"{path}:{key}: seen a record without image, expected {expected} (as its JSON says)")
        if numbers != list(range(expected)):
            raise ValueError(f"{path}:{key}: seen images numbered {numbers[:20]}, expected {expected} counted from 0")
        if key in faults:
            questions = [(tags, why or faults[key]) for tags, why in questions]
        records.append(Record(key, parts, questions))
    return records


def _questions(data: bytes, key: str) -> tuple[int | None, list[tuple[str, str | None]]]:
    """(pictures that a record's JSON names, None where it can't be read; (tags, what is wrong) of each question)."""
    if (quick := quick_look(data)) is not None:
        return quick[0], [(sys.intern(tags), None) for tags in quick[1]]
    count, found = None, list[tuple[str, str | None]]()
    try:
        questions = Questions(data, key)
    except ValueError as error:
        return None, [("", _why(error, key))]
    for j in range(len(questions)):
        try:
            sample = questions[j]
            count = len(sample.images)
            found.append((sys.intern("\t".join(sample.tags)), None))
        except ValueError as error:
            found.append(("", _why(error, question_key(key, j, len(questions)))))
    return count, found


def _why(error: ValueError, key: str) -> str:
    return str(error).removeprefix(f":{key}: ")


class _Forward:
    """Reads a file once from its beginning to its end, a window of a megabyte at a time, and hashes every byte."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.start, self.window = 0, b""

    def read_at(self, offset: int, count: int) -> bytes:
        first = offset - self.start
        if first + count > len(self.window):
            self._advance(offset, count)
            first = 0
        return self.window[first : first + count]

    def skip_to(self, offset: int) -> None:
        while self.start + len(self.window) < offset and (more := self._more(_CHUNK)):
            self.start, self.window = self.start + len(self.window), more

    def _advance(self, offset: int, count: int) -> None:
        self.skip_to(offset)
        kept = self.window[offset - self.start :]
        self.start, self.window = offset, kept + self._more(max(_CHUNK, count - len(kept)))

    def _more(self, count: int) -> bytes:
        more = self.file.read(count)
        self.sha256.update(more)
        return more


def _members(path: str, forward: _Forward, size: int) -> Iterator[tuple[Member, int, bytes]]:
    """(member, crc32, its bytes, of a picture at most the first megabyte) of every file in the tar."""
    position, last = 0, ""
    while True:
        try:
            member = next_member(forward.read_at, position)
        except NotATar as error:
            raise ValueError(f"{path}: {error}{f' (behind member {last})' if last else ''}") from None
        name, offset, count = member
        if not name:
            _check_end(path, forward, offset, size, f"member {last}" if last else "nothing")
            return
        if offset + count > size:
            raise ValueError(
                f"{path}: member {name}: seen {max(0, size - offset)} of {count} bytes, "
                "expected all of them (the tar is cut)"
            )
        if not (name.startswith("__") and _SKIPPED.match(name)):
            is_json = name[-5:].lower() == ".json"
            if count > (limit := MAX_JSON if is_json else MAX_MEMBER):
                raise ValueError(f"{path}: member {name!r}: seen {count} bytes, expected at most {limit}")
            data = forward.read_at(offset, count if is_json else min(count, _CHUNK))
            crc = crc32(data)
            if count > len(data):
                for start in range(len(data), count, _CHUNK):
                    crc = crc32(forward.read_at(offset + start, min(_CHUNK, count - start)), crc)
            yield member, crc, data
        position, last = member.end, name


def _check_end(path: str, forward: _Forward, position: int, size: int, last: str) -> None:
    """ValueError when what follows the empty block at `position` is not the end of a tar: zeros alone, two blocks."""
    tail = forward.read_at(position + _BLOCK, max(0, min(size - position - _BLOCK, MAX_TAIL)))
    if tail.strip(b"\0"):
        raise ValueError(f"{path}: seen unreadable bytes after {last}, expected a member or the end of the tar")
    if size < position + 2 * _BLOCK:
        raise ValueError(f"{path}: seen the end right after {last}, expected two empty blocks (the tar is cut)")
    if size > position + _BLOCK + len(tail):
        raise ValueError(f"{path}: seen {size - position} bytes after {last}, expected at most {MAX_TAIL} zeros there")


def first_record(read_at: ReadAt, position: int) -> Member:
    """As `next_member`, remarks about the tar itself passed over too."""
    while _SKIPPED.match((member := next_member(read_at, position)).name):
        position = member.end
    return member


def next_member(read_at: ReadAt, position: int) -> Member:
    """The first file at or behind the header at `position`; one without a name where the tar ends.

    Folders and headers about the next member are passed over. Raises NotATar.
    """
    long_name, pax, chain = None, dict[bytes, bytes](), 0
    while True:
        block = read_at(position, _BLOCK)
        if not chain and (size := _size_of_usual(block)) >= 0:
            return Member(_safe(_name(block, None)), position + _BLOCK, size)
        if not (block[:1].strip(b"\0") or block.strip(b"\0")):
            if chain:
                raise NotATar("seen a long name without its member, expected a whole tar")
            return Member("", position, 0)
        if len(block) < _BLOCK:
            raise NotATar(f"{_UNREADABLE} (a header of {len(block)} bytes), expected a whole plain tar")
        if not _checksum_fits(block):
            raise NotATar(f"{_UNREADABLE} (no header), expected a whole plain tar")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (_LONG_NAME, _LONG_LINK, _PAX_NEXT, _PAX_ALL):
            chain += 1
            if size > MAX_META or chain > _MAX_CHAIN:
                seen = f"{size} bytes" if size > MAX_META else f"{chain} headers"
                most = f"{MAX_META} bytes in {_MAX_CHAIN} headers"
                raise NotATar(f"seen {seen} about the name of one member, expected at most {most}")
            data = read_at(position + _BLOCK, size)
            if len(data) < size:
                raise NotATar(f"{_UNREADABLE} ({len(data)} of {size} bytes of a name), expected a whole plain tar")
            if kind == _LONG_NAME:
                long_name = data.split(b"\0", 1)[0]
            elif kind in (_PAX_NEXT, _PAX_ALL):
                found = _pax(data)
                if kind == _PAX_ALL and (found.keys() & {b"path", b"size"}):
                    raise NotATar("seen one name or size for all members, expected each to have its own")
                pax |= found if kind == _PAX_NEXT else {}
            position += _BLOCK + -(-size // _BLOCK) * _BLOCK
            continue
        name = _name(block, pax.get(b"path", long_name))
        if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
            position, long_name, pax, chain = position + _BLOCK, None, {}, 0
            continue
        if kind not in (b"0", b"\0"):
            raise NotATar(f"member {name!r}: seen a link or device, expected a regular file")
        if b"size" in pax:
            if not pax[b"size"].isdigit() or len(pax[b"size"]) > 15:
                raise NotATar(f"member {name!r}: seen the size {pax[b'size'][:20]!r}, expected a number")
            size = int(pax[b"size"])
        return Member(_safe(name), position + _BLOCK, size)


def _safe(name: str) -> str:
    """The name of a file; NotATar for one that is no plain relative path."""
    if not _SAFE.fullmatch(name) or (".." in name and ".." in name.split("/")):
        raise NotATar(f"member {name[:80]!r}: seen an unsafe name, expected a relative path")
    return name


def _size_of_usual(block: bytes) -> int:
    """The size of a regular file in a header as tar programs write it, whose sum fits; -1: to be looked at closely."""
    match = _USUAL.match(block, 124)
    if match is None or len(block) != _BLOCK:
        return -1
    size, stored = match.groups()
    wrong = adler32(block) - 1 - sum(stored) - _BLANKS - int(stored, 8)
    return -1 if wrong & 0xFFFF else int(size, 8)


def _checksum_fits(block: bytes) -> bool:
    """The sum of a header's bytes, its own field counted as blanks; old tars summed them as signed."""
    try:
        stored = _number(block[148:156])
    except NotATar:
        return False
    own = sum(block[148:156]) - 8 * 32
    if (adler32(block) - 1 - own - stored) & 0xFFFF == 0:  # its low half is 1 + the sum, modulo a prime above it
        return True
    total = sum(block) - own
    return stored in (total, total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]))


def _number(field: bytes) -> int:
    text = field.strip(b" \0")
    if text.isdigit() and not text.strip(b"01234567"):
        return int(text, 8)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if text:
        raise NotATar(f"seen {field!r} in a header, expected an octal number")
    return 0


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records "LENGTH KEY=VALUE" of a PAX header; its holes are refused, since no record is stored with them."""
    found, position = {}, 0
    while position < len(data) and data[position] != 0:
        match = _PAX.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data):
            raise NotATar(f"seen {data[position : position + 20]!r} in a PAX header, expected LENGTH KEY=VALUE")
        if match[2].startswith(b"GNU.sparse"):
            raise NotATar("seen a file with holes, expected a regular file")
        found[match[2]] = data[match.end() : end - 1]
        position = end
    return found


def _name(block: bytes, long_name: bytes | None) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[345] != 0 and block[257:263] == b"ustar\0":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    try:
        text = (name if long_name is None else long_name).decode()
    except UnicodeDecodeError:
        raise NotATar(f"member {(long_name or name)[:80]!r}: seen a name that is no UTF-8, expected UTF-8") from None
    return text


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member's name, both empty where it has none."""
    match = _SPLIT.fullmatch(name)
    return (match[1], match[2].lower()) if match else ("", "")


@lru_cache(maxsize=1024)
def image_order(extension: str) -> int:
    """0 for "jpg", k for "k.jpg", -1 for "json"."""
    match = _IMAGE.fullmatch(extension)
    return -1 if match is None else int(match[1] or 0)
