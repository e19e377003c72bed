"""Samples to WebDataset shards, byte for byte the same each time."""

import hashlib
import json
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import webdataset

from ts_lightning.data.images import sniff_extension
from ts_lightning.data.record import split_key, to_json
from ts_lightning.data.sample import MAX_ITEMS, MAX_JSON, Sample

MAX_GROUP = 64  # questions of a record: its whole JSON is parsed for each of them
_KEY = re.compile(r"[A-Za-z0-9_#-]+")  # "#": of samples that were read


def write_shards(samples: Iterable[Sample], folder: str | Path, prefix: str, maxcount: int = 10_000) -> list[Path]:
    """Write `folder/prefix-000000.tar`, ...; returns the paths. Older shards of that prefix are replaced at the end.

    Samples of one source about the same pictures (their bytes, names and sizes) become the questions of one record,
    wherever they come in `samples`, up to 64 in a record; records come in the order of their first samples. What is
    written lies twice on the disk until the end, in memory lie keys and places alone. A shard holds records of one
    picture count and one set of extensions (Hugging Face `datasets` needs that), at most `maxcount` questions.

    Raises ValueError for an invalid sample, an unsafe or repeated key, a picture too many or few.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=folder))
    try:
        with open(staging / "spool", "w+b") as file:
            spool = _Spool(file)
            for sample in samples:
                spool.add(sample)
            if not spool.keys:
                raise ValueError(f"{folder}/{prefix}: seen no samples to write, expected at least one")
            _write(spool, staging, maxcount)
        return _publish(staging, folder, prefix)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass
class _Group:
    """A record to be: (offset, size) in the spool of its pictures and of its samples' JSON, one after the other."""

    key: str
    extensions: list[str]
    pictures: array = field(default_factory=lambda: array("q"))
    samples: array = field(default_factory=lambda: array("q"))
    num_bytes: int = 0
    num_regions: int = 0


class _Spool:
    """Everything that came, in a file; in memory, what belongs together and where it lies."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.keys: set[str] = set()
        self.groups: list[_Group] = []
        self._open: dict[bytes, _Group] = {}  # by pictures, the one that still takes samples
        self._record_keys: set[str] = set()

    def add(self, sample: Sample) -> None:
        _check(sample)
        if sample.key in self.keys:
            raise ValueError(f"{sample.where}: seen the key {sample.key!r} twice, expected unique keys")
        self.keys.add(sample.key)
        data = sample.to_json()
        group = self._group(sample, len(data))
        group.samples.extend(self._put(data))
        group.num_bytes += len(data)
        group.num_regions += len(sample.regions)

    def _group(self, sample: Sample, size: int) -> _Group:
        named = [(image.name, image.width, image.height) for image in sample.images]
        digest = hashlib.sha256(json.dumps([sample.source, named]).encode())
        for data in sample.image_bytes:
            digest.update(hashlib.sha256(data).digest())
        known = self._open.get(digest.digest()) if named else None
        if known is not None and (
            len(known.samples) < 2 * MAX_GROUP
            and known.num_bytes + size <= MAX_JSON // 2
            and known.num_regions + len(sample.regions) <= MAX_ITEMS
        ):
            return known
        group = _Group(self._record_key(sample.key), [sniff_extension(data) for data in sample.image_bytes])
        for data in sample.image_bytes:
            group.pictures.extend(self._put(data))
        self.groups.append(group)
        self._open[digest.digest()] = group
        return group

    def _record_key(self, key: str) -> str:
        """The key of a record that begins with the sample of this key: one that was read as "key#j" is "key" again."""
        base = name = split_key(key)[0].replace("#", "-")
        number = 1
        while name in self._record_keys:
            name, number = f"{base}-{number}", number + 1
        self._record_keys.add(name)
        return name

    def _put(self, data: bytes) -> tuple[int, int]:
        offset = self.file.tell()
        self.file.write(data)
        return offset, len(data)

    def read(self, places: array) -> Iterator[bytes]:
        for offset, size in zip(places[::2], places[1::2], strict=True):
            self.file.seek(offset)
            yield self.file.read(size)


def _write(spool: _Spool, staging: Path, maxcount: int) -> None:
    writers: dict[tuple[str, ...], tuple[webdataset.ShardWriter, list[int]]] = {}
    files: dict[str, IO[bytes]] = {}

    def open_shard(path: str) -> IO[bytes]:  # webdataset's own opener refuses local paths under WDS_SECURE=1
        files[path] = open(path, "wb")  # noqa: SIM115 (closed by `post`)
        return files[path]

    for group in spool.groups:
        questions = [json.loads(data) for data in spool.read(group.samples)]
        record: dict[str, Any] = {"__key__": group.key, "json": to_json(questions)}
        for i, (extension, data) in enumerate(zip(group.extensions, spool.read(group.pictures), strict=True)):
            record[extension if len(group.extensions) == 1 else f"{i}.{extension}"] = data
        kind = tuple(sorted(record))
        if kind not in writers:
            writer = webdataset.ShardWriter(
                f"{staging}/{len(writers)}-".replace("%", "%%") + "%06d.tar",
                maxcount=1 << 62,  # it would count records
                post=lambda path: files.pop(path).close(),
                verbose=0,
                opener=open_shard,
                encoder=False,
                mtime=0,
                user="",
                group="",
            )
            writers[kind] = writer, [0]
        writer, count = writers[kind]
        if count[0] and count[0] + len(questions) > maxcount:
            writer.next_stream()
            count[0] = 0
        writer.write(record)
        count[0] += len(questions)
    for writer, _ in writers.values():
        writer.close()


def _check(sample: Sample) -> None:
    sample.validate()
    if not _KEY.fullmatch(sample.key):
        raise ValueError(f"{sample.where}: seen the key {sample.key!r}, expected letters, digits, '-' and '_'")
    if len(sample.image_bytes) != len(sample.images):
        raise ValueError(f"{sample.where}: seen {len(sample.image_bytes)} pictures, expected {len(sample.images)}")
    for data in sample.image_bytes:
        try:
            sniff_extension(data)
        except ValueError as error:
            raise ValueError(f"{sample.where}: {error}") from None


def remove_shards(folder: str | Path, prefix: str) -> list[Path]:
    """Remove `folder/prefix-000000.tar`, ... with their indices; returns the paths that are left, which is none."""
    own = re.compile(re.escape(prefix) + r"-\d{6}\.tar(\.idx)?")
    for old in Path(folder).iterdir():
        if own.fullmatch(old.name):
            old.unlink()
    return []


def _publish(staging: Path, folder: Path, prefix: str) -> list[Path]:
    paths = remove_shards(folder, prefix)
    for number, path in enumerate(sorted(staging.glob("*.tar"), key=lambda p: [int(v) for v in p.stem.split("-")])):
        paths.append(path.rename(folder / f"{prefix}-{number:06d}.tar"))
    return paths
