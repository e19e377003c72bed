"""Random access to the records of indexed shards, and the map-style dataset over them."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any
from zlib import crc32

import torch
from torch.utils.data import Dataset

from ts_lightning.data.images import displayed_size
from ts_lightning.data.index import Manifest, ShardIndex, index_shard
from ts_lightning.data.sample import Sample
from ts_lightning.data.tar import Member, NotATar, first_record, image_order, split_name

MAX_OPEN_SHARDS = 128
STAND_IN_TRIES = 64


class ShardReader:
    """`read(i)`: record i of a manifest.

    Each process opens a shard once and reads by position (pread), so forked workers never share a file offset.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._open: OrderedDict[str, int] = OrderedDict()
        self._pid = os.getpid()

    def read(self, i: int) -> Sample:
        """The validated sample with its image bytes; ValueError for a wrong checksum or an invalid record."""
        shard, r = self.manifest.locate(i)
        return self.read_record(shard, r)

    def read_record(self, shard: ShardIndex, r: int) -> Sample:
        record, pictures = self.read_bytes(shard, r)
        sample = Sample.from_json(record, shard.keys[r], shard.path, pictures)
        for i, (image, data) in enumerate(zip(sample.images, pictures, strict=False)):
            if (seen := displayed_size(data)) not in (None, (image.width, image.height)):
                raise ValueError(
                    f"{sample.where}: field images[{i}]: seen {image.width} x {image.height}, expected {seen[0]} x "
                    f"{seen[1]} as the picture is displayed"
                )
        return sample

    def read_bytes(self, shard: ShardIndex, r: int) -> tuple[bytes, list[bytes]]:
        """A record's JSON and its images as stored; ValueError for a wrong checksum."""
        key = shard.keys[r]
        data: dict[str, bytes] = {}
        fd = self._fd(shard)
        end = shard.member(shard.starts[r] - 1).end if r else 0
        for name, offset, size, crc in shard.record(r):
            entry = Member(f"{key}.{name}", offset, size)
            _check_entry(fd, end, entry, shard.where(r))
            end = entry.end
            data[name] = os.pread(fd, size, offset)
            if crc32(data[name]) != crc:
                raise ValueError(
                    f"{shard.path}:{key}: member {name}: seen checksum {crc32(data[name]):08x}, "
                    f"expected {crc:08x} (the shard changed after it was indexed)"
                )
        if "json" not in data:
            raise ValueError(
                f"{shard.path}:{key}: seen an index without the record's json, expected {shard.path}.idx anew"
            )
        record = data.pop("json")
        return record, [data[name] for name in sorted(data, key=image_order)]

    def _fd(self, shard: ShardIndex) -> int:
        if self._pid != os.getpid():  # a forked worker: the parent's files are not ours to close
            self._open, self._pid = OrderedDict(), os.getpid()
        fd = self._open.pop(shard.path, None)
        if fd is None:
            fd = os.open(shard.path, os.O_RDONLY)
            if len(self._open) >= MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard.path] = fd
        return fd

    def __getstate__(self) -> dict[str, Any]:
        return {"manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["manifest"])  # type: ignore[misc]

    def __del__(self) -> None:
        if self._pid == os.getpid():
            for fd in self._open.values():
                os.close(fd)


def _check_entry(fd: int, position: int, entry: Member, where: str) -> None:
    """ValueError when the tar's header at `position` is not that of an index's entry: anyone may write an index."""
    try:
        seen = first_record(lambda offset, count: os.pread(fd, count, offset), position)
    except NotATar as error:
        raise ValueError(f"{where}: {error} (the shard changed after it was indexed)") from None
    if (*split_name(seen.name), *seen[1:]) != (*split_name(entry.name), *entry[1:]):
        raise ValueError(
            f"{where}: seen {seen.name!r} of {seen.size} bytes in the tar, expected {entry.name!r} of "
            f"{entry.size} as in the index beside it (one of them changed: remove the .idx file)"
        )


class ShardDataset(Dataset[dict[str, Any]]):
    """Encoded rows: `dataset[i]` is `encode(sample, for_generation=...)` plus `row_valid` and `bad`.

    Index -1 is a padding row. A padding row and the row of an unreadable record hold a readable neighbour's tensors
    with `row_valid` False and every step id -1, so any backbone can run them; `bad` is then ("shard:key", why).
    Where no neighbour can be read either, the row is `bad` alone. `noise(sample, visit)` is what is encoded in a
    sample's place.
    """

    def __init__(
        self,
        manifest: Manifest,
        encode: Callable[..., dict[str, Any]],
        for_generation: bool = False,
        noise: Callable[[Sample, int], Sample] | None = None,
    ) -> None:
        self.reader = ShardReader(manifest)
        self.encode = encode
        self.for_generation = for_generation
        self.noise = noise

    def __len__(self) -> int:
        return self.reader.manifest.num_samples

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.row(i)

    def row(self, i: int, visit: int = 0) -> dict[str, Any]:
        """`self[i]` after the record came `visit` times before."""
        if i < 0:
            return self._stand_in(0, None)
        try:
            return self._row(i, visit)
        except ValueError as error:
            shard, r = self.reader.manifest.locate(i)
            where = shard.where(r)
            why = str(error).removeprefix(f"{where}: ").removeprefix(f"{shard.keys[r]}: ")
            return self._stand_in(i + 1, (where, why))

    def _row(self, i: int, visit: int = 0) -> dict[str, Any]:
        sample = self.reader.read(i)
        shown = sample if self.noise is None else self.noise(sample, visit)
        row = self.encode(shown, for_generation=self.for_generation)
        return row | {"sample": sample.without_bytes(), "row_valid": True, "bad": None}

    def _stand_in(self, start: int, bad: tuple[str, str] | None) -> dict[str, Any]:
        for i in range(start, start + min(STAND_IN_TRIES, len(self))):
            try:
                row = self._row(i % len(self))
            except ValueError:
                continue
            masked = torch.full_like(row["step_ids"], -1)
            return row | {"step_ids": masked, "row_valid": False, "bad": bad}
        return {"bad": bad}


class Draws(Dataset[dict[str, Any]]):
    """Training sources one behind the other: row n is record n % len, which came n // len times before."""

    def __init__(self, sources: Sequence[ShardDataset]) -> None:
        self.sources = sources
        self.starts = [0, *accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, n: int) -> dict[str, Any]:
        visit, i = divmod(n, len(self))
        source = bisect_right(self.starts, i) - 1
        return self.sources[source].row(i - self.starts[source], visit)


def with_bytes(sample: Sample) -> Sample:
    """The sample with its image bytes, read again from its shard (batches carry samples without them)."""
    index = index_shard(sample.shard)
    reader = ShardReader(Manifest((index,), len(index.keys)))
    return replace(sample, image_bytes=reader.read(index.keys.index(sample.key)).image_bytes)
