"""Samples to WebDataset shards, byte for byte the same each time."""

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import webdataset

from ts_lightning.data.images import sniff_extension
from ts_lightning.data.sample import Sample

_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_shards(samples: Iterable[Sample], folder: str | Path, prefix: str, maxcount: int = 10_000) -> list[Path]:
    """Write `folder/prefix-000000.tar`, ...; returns the paths. Older shards of that prefix are replaced at the end.

    A shard holds records of one picture count and one set of extensions (Hugging Face `datasets` needs that), at most
    `maxcount` of them. Raises ValueError for an invalid sample, an unsafe or repeated key, a picture too many or few.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=folder))
    writers: dict[tuple[str, ...], webdataset.ShardWriter] = {}
    files: dict[str, IO[bytes]] = {}
    keys: set[str] = set()

    def open_shard(path: str) -> IO[bytes]:  # webdataset's own opener refuses local paths under WDS_SECURE=1
        files[path] = open(path, "wb")  # noqa: SIM115 (closed by `post`)
        return files[path]

    try:
        for sample in samples:
            record = _record(sample)
            if sample.key in keys:
                raise ValueError(f"{sample.where}: seen the key {sample.key!r} twice, expected unique keys")
            keys.add(sample.key)
            kind = tuple(sorted(record))
            if kind not in writers:
                pattern = f"{staging}/{len(writers)}-".replace("%", "%%") + "%06d.tar"
                writers[kind] = webdataset.ShardWriter(
                    pattern,
                    maxcount,
                    post=lambda path: files.pop(path).close(),
                    verbose=0,
                    opener=open_shard,
                    encoder=False,
                    mtime=0,
                    user="",
                    group="",
                )
            writers[kind].write(record)
        for writer in writers.values():
            writer.close()
        if not keys:
            raise ValueError(f"{folder}/{prefix}: seen no samples to write, expected at least one")
        return _publish(staging, folder, prefix)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _record(sample: Sample) -> dict[str, Any]:
    """The members of one record: {"__key__", "json", "jpg"} or {"0.jpg", "1.jpg", ...} for several pictures."""
    sample.validate()
    if not _KEY.fullmatch(sample.key):
        raise ValueError(f"{sample.where}: seen the key {sample.key!r}, expected letters, digits, '-' and '_'")
    if len(sample.image_bytes) != len(sample.images):
        raise ValueError(f"{sample.where}: seen {len(sample.image_bytes)} pictures, expected {len(sample.images)}")
    record: dict[str, Any] = {"__key__": sample.key, "json": sample.to_json()}
    for i, data in enumerate(sample.image_bytes):
        try:
            extension = sniff_extension(data)
        except ValueError as error:
            raise ValueError(f"{sample.where}: {error}") from None
        record[extension if len(sample.images) == 1 else f"{i}.{extension}"] = data
    return record


def remove_shards(folder: str | Path, prefix: str) -> list[Path]:
    """Remove `folder/prefix-000000.tar`, ... with their indices; returns the paths that are left, which is none."""
    own = re.compile(re.escape(prefix) + r"-\d{6}\.tar(\.idx)?")
    for old in Path(folder).iterdir():
        if own.fullmatch(old.name):
            old.unlink()
    return []


def _publish(staging: Path, folder: Path, prefix: str) -> list[Path]:
    paths = remove_shards(folder, prefix)
    for number, path in enumerate(sorted(staging.iterdir(), key=lambda p: [int(v) for v in p.stem.split("-")])):
        paths.append(path.rename(folder / f"{prefix}-{number:06d}.tar"))
    return paths
