"""Random access to the records of indexed shards, and the map-style dataset over them."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import Dataset

from ts_lightning.data.images import displayed_size
from ts_lightning.data.index import ShardIndex, index_shard
from ts_lightning.data.manifest import Manifest
from ts_lightning.data.record import Questions
from ts_lightning.data.sample import Sample
from ts_lightning.data.tar import Member, NotATar, ReadAt, first_record, image_order, split_name

MAX_OPEN_SHARDS = 128
STAND_IN_TRIES = 64
PER_ROW = 8  # most questions that evaluation reads at once: attention grows with their number squared
MAX_GAP = 1 << 20  # bytes of headers and remarks inside of a record
_REMOVE = "the shard or the index beside it changed: remove the .idx file"


class ShardReader:
    """`read(i)`: question i of a manifest, with its record's pictures; `read_row(i)`: the questions of row i.

    Iterating over it reads all questions in order. Each process opens a shard once and reads by position (pread), so
    forked workers never share a file offset.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._open: OrderedDict[str, int] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, range(len(self)))

    def read(self, i: int) -> Sample:
        """The validated sample with its image bytes; ValueError for a wrong checksum or an invalid record."""
        return self.read_question(*self.manifest.locate(i))

    def read_row(self, i: int) -> list[Sample]:
        """The questions of row i, about the same pictures, which are read once; ValueError as `read`."""
        shard, numbers = self.manifest.row(i)
        return self.read_questions(shard, numbers)

    def read_question(self, shard: ShardIndex, q: int) -> Sample:
        """Question q of a shard."""
        return self.read_questions(shard, [q])[0]

    def read_questions(self, shard: ShardIndex, numbers: list[int]) -> list[Sample]:
        """Questions of one record of a shard; ValueError as `read`."""
        places = [shard.question(q) for q in numbers]
        r = places[0][0]
        record, pictures = self.read_bytes(shard, r)
        questions = Questions(record, shard.key(r), shard.path, pictures)
        samples = []
        if len(questions) != shard.num_questions_of(r):
            raise ValueError(f"{shard.where(numbers[0])}: seen {len(questions)} questions, not as indexed ({_REMOVE})")
        for q, (_, j) in zip(numbers, places, strict=True):
            sample = questions[j]
            if "\t".join(sample.tags) != shard.tags(q):
                raise ValueError(f"{shard.where(q)}: seen other tags than its index says ({_REMOVE})")
            samples.append(sample)
        for i, (image, data) in enumerate(zip(samples[0].images, pictures, strict=False)):
            if (seen := displayed_size(data)) not in (None, (image.width, image.height)):
                raise ValueError(
                    f"{samples[0].where}: field images[{i}]: seen {image.width} x {image.height}, expected {seen[0]} x "
                    f"{seen[1]} as the picture is displayed"
                )
        return samples

    def read_bytes(self, shard: ShardIndex, r: int) -> tuple[bytes, list[bytes]]:
        """A record's JSON and its images as stored; ValueError for a wrong checksum, or another record than indexed."""
        key, members, begin = shard.key(r), shard.record(r), shard.begin(r)
        where = f"{shard.path}:{key}"
        end = members[-1][1] + members[-1][2]
        if end - begin > sum(size for _, _, size, _ in members) + MAX_GAP:
            raise ValueError(f"{where}: seen {end - begin} bytes for its record, expected fewer ({_REMOVE})")
        whole = memoryview(os.pread(self._fd(shard), end - begin, begin))

        def read_at(offset: int, count: int) -> bytes:
            return bytes(whole[offset - begin : offset - begin + count])

        data: dict[str, bytes] = {}
        position = begin
        for name, offset, size, crc in members:
            entry = Member(f"{key}.{name}", offset, size)
            _check_entry(read_at, position, entry, where)
            position = entry.end
            data[name] = read_at(offset, size)
            if crc32(data[name]) != crc:
                raise ValueError(
                    f"{where}: member {name}: seen checksum {crc32(data[name]):08x}, "
                    f"expected {crc:08x} (the shard changed after it was indexed)"
                )
        if "json" not in data:
            raise ValueError(f"{where}: seen an index without the record's json ({_REMOVE})")
        record = data.pop("json")
        return record, [data[name] for name in sorted(data, key=image_order)]

    def _fd(self, shard: ShardIndex) -> int:
        if self._pid != os.getpid():  # a forked worker: the parent's files are not ours to close
            self._open, self._pid = OrderedDict(), os.getpid()
        fd = self._open.pop(shard.path, None)
        if fd is None:
            fd = os.open(shard.provide(), os.O_RDONLY)
            if len(self._open) >= MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open[shard.path] = fd
        return fd

    def __getstate__(self) -> dict[str, Any]:
        return {"manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["manifest"])  # type: ignore[misc]

    def __del__(self, os: Any = os) -> None:  # a global is gone when the interpreter ends
        if self._pid == os.getpid():
            for fd in self._open.values():
                os.close(fd)


def _check_entry(read_at: ReadAt, position: int, entry: Member, where: str) -> None:
    """ValueError when the tar's header at `position` is not that of an index's entry: anyone may write an index."""
    try:
        seen = first_record(read_at, position)
    except NotATar as error:
        raise ValueError(f"{where}: {error} (the shard changed after it was indexed)") from None
    if (*split_name(seen.name), *seen[1:]) != (*split_name(entry.name), *entry[1:]):
        raise ValueError(
            f"{where}: seen {seen.name!r} of {seen.size} bytes in the tar, expected {entry.name!r} of {entry.size} as "
            f"indexed ({_REMOVE})"
        )


class ShardDataset(Dataset[dict[str, Any]]):
    """Encoded rows: `dataset[i]` is `encode(sample, for_generation=...)` plus `row_valid` and `bad`.

    Index -1 is a padding row. A padding row and the row of an unreadable record hold a readable neighbour's tensors
    with `row_valid` False and every step id -1, so any backbone can run them; `bad` is then ("shard:key", why).
    Where no neighbour can be read either, the row is `bad` alone. `noise(sample, visit)` is what is encoded in a
    sample's place, with `after_question` behind it. `pack` makes few rows of those of a record's questions: in training
    of all of `rows`, in evaluation of those of one task that follow each other in a batch (`__getitems__`, which a
    DataLoader calls).
    """

    def __init__(
        self,
        manifest: Manifest,
        encode: Callable[..., dict[str, Any]],
        for_generation: bool = False,
        noise: Callable[[Sample, int], Sample] | None = None,
        pack: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None,
        after_question: str = "",
    ) -> None:
        self.pack, self.after_question = pack, after_question
        self.reader = ShardReader(manifest)
        self.encode = encode
        self.for_generation = for_generation
        self.noise = noise

    def __len__(self) -> int:
        return self.reader.manifest.num_rows

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.row(i)

    def row(self, i: int, visit: int = 0) -> dict[str, Any]:
        """`self[i]` after the record came `visit` times before."""
        if i < 0:
            return self._stand_in(0, None)
        try:
            return self._row(i, visit)
        except ValueError as error:
            return self._stand_in(i + 1, _bad(*self.reader.manifest.locate(i), error))

    def rows(self, i: int, visit: int = 0) -> list[dict[str, Any]]:
        """The questions of row i in as few rows as can be; one that can't be read has a row of its own."""
        if self.pack is None:
            return [self.row(i, visit)]
        shard, numbers = self.reader.manifest.row(i)
        rows = self._questions(shard, numbers, [i + 1] * len(numbers), visit)
        return self.pack([row for row in rows if not row["bad"]]) + [row for row in rows if row["bad"]]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch in its order, questions of one record and task in a row together."""
        if self.pack is None or -1 in places:
            return [self.row(i) for i in places]
        rows: list[dict[str, Any]] = []
        for _, same in groupby(places, self._record):
            record = [*same]
            questions = [self.reader.manifest.locate(i) for i in record]
            found = self._questions(questions[0][0], [q for _, q in questions], [i + 1 for i in record])
            for (bad, _), group in groupby(found, lambda row: (bool(row["bad"]), row.get("task"))):
                alike = [*group]
                parts = (alike[start : start + PER_ROW] for start in range(0, len(alike), PER_ROW))
                rows += alike if bad else [row for part in parts for row in self.pack(part)]
        return rows

    def _record(self, i: int) -> tuple[str, int]:
        shard, q = self.reader.manifest.locate(i)
        return shard.path, shard.question(q)[0]

    def _questions(
        self, shard: ShardIndex, numbers: list[int], starts: list[int], visit: int = 0
    ) -> list[dict[str, Any]]:
        """A row for each of some questions of one record, which is read once; `starts`: where stand-ins are sought."""
        try:
            samples: list[Any] = self.reader.read_questions(shard, numbers)
        except ValueError:
            samples = [None] * len(numbers)  # one of them, or the record: each shows in its own reading
        rows = []
        for q, sample, start in zip(numbers, samples, starts, strict=True):
            try:
                rows.append(self._encoded(sample or self.reader.read_question(shard, q), visit))
            except ValueError as error:
                rows.append(self._stand_in(start, _bad(shard, q, error)))
        return rows

    def _row(self, i: int, visit: int = 0) -> dict[str, Any]:
        return self._encoded(self.reader.read(i), visit)

    def _encoded(self, sample: Sample, visit: int) -> dict[str, Any]:
        sample.after_question = self.after_question
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


def _bad(shard: ShardIndex, q: int, error: ValueError) -> tuple[str, str]:
    """("shard:key", why) of a question."""
    where = shard.where(q)
    return where, str(error).removeprefix(f"{where}: ").removeprefix(f"{where.removeprefix(shard.path + ':')}: ")


class Draws(Dataset[list[dict[str, Any]]]):
    """Training sources one behind the other: draw n is the rows of n % len, which came n // len times before.

    Rows have the number of their `source`.
    """

    def __init__(self, sources: Sequence[ShardDataset]) -> None:
        self.sources = sources
        self.starts = [0, *accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, n: int) -> list[dict[str, Any]]:
        visit, i = divmod(n, len(self))
        source = bisect_right(self.starts, i) - 1
        return [row | {"source": source} for row in self.sources[source].rows(i - self.starts[source], visit)]

    def shards(self, rows: np.ndarray) -> list[ShardIndex]:
        """The shards of these rows, in the order in which they first come."""
        rows = rows % len(self)
        found: dict[str, ShardIndex] = {}
        for source, start, end in zip(self.sources, self.starts, self.starts[1:], strict=False):
            own = rows[(rows >= start) & (rows < end)] - start
            found |= {shard.path: shard for shard in source.reader.manifest.shards_of(own)}
        return [*found.values()]


def with_bytes(sample: Sample) -> Sample:
    """The sample with its image bytes, read again from its shard (batches carry samples without them)."""
    index = index_shard(sample.shard)
    reader = ShardReader(Manifest.of(index))
    return replace(sample, image_bytes=reader.read_question(index, index.find(sample.key)).image_bytes)
