"""Shards in order, and which of their questions count: what a stream of training or evaluation runs over."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ts_lightning.data.index import (
    INDEX_VERSION,
    MAPPED,
    ShardIndex,
    file_sha256,
    index_shard,
    index_tar,
    known_index,
    same_entries,
    stored_arrays,
)
from ts_lightning.data.paths import Paths, expand
from ts_lightning.data.record import SCHEMA_VERSION
from ts_lightning.data.tar import open_regular

log = logging.getLogger("ts_lightning.data")

MAX_MANIFEST = 1 << 30  # bytes
_SHA_FORMAT = 1  # of `Manifest.sha256`; the shards' own sums cover what is in them, of either schema
POOL_FROM = 8  # shards without an index from which several processes make them
Tags = frozenset[str]


@dataclass(frozen=True)
class Manifest:
    """Shards in order; of their questions `num_samples` count that have one of `include` (empty: any) and none of
    `exclude` of the tags.

    They are the first ones of each kind of shard, in proportion: records of two and of three pictures lie in shards of
    their own, one kind behind the other, and the first few of all would be of one kind. Smaller choices lie within
    larger ones.

    A row is what is read at once: up to `questions_per_row` of them about the pictures of one record. `sha256` names
    the shards' content and the choice, not their place.
    """

    shards: tuple[ShardIndex, ...]
    num_samples: int
    include: Tags = frozenset()
    exclude: Tags = frozenset()
    questions_per_row: int = 1

    @classmethod
    def of(cls, *shards: ShardIndex) -> "Manifest":
        """All questions of these shards."""
        return cls(shards, sum(shard.num_questions for shard in shards))

    @cached_property
    def _counts(self) -> np.ndarray:
        """The questions of each shard that count: its first ones with the right tags."""
        if self.include or self.exclude:
            counts = [len(_chosen(shard, self.include, self.exclude)) for shard in self.shards]
        else:
            counts = [shard.num_questions for shard in self.shards]
        kinds = list(dict.fromkeys(shard.extensions for shard in self.shards))
        kind_S = np.array([kinds.index(shard.extensions) for shard in self.shards])
        found = np.array(counts, dtype=np.int64)
        shares = _shares(np.bincount(kind_S, found).astype(np.int64).tolist(), self.num_samples)
        for kind, share in enumerate(shares):
            own = kind_S == kind
            found[own] = np.diff(np.minimum(np.cumsum(found[own]), share), prepend=0)
        return found

    @property
    def shard_sizes(self) -> list[int]:
        """Rows of every shard."""
        return self._sizes.tolist()

    @cached_property
    def _sizes(self) -> np.ndarray:
        if self.questions_per_row == 1:
            return self._counts
        return np.array([len(self._starts(s)) - 1 for s in range(len(self.shards))], dtype=np.int64)

    @cached_property
    def _row_ends(self) -> np.ndarray:
        return np.cumsum(self._sizes)

    @property
    def num_rows(self) -> int:
        return int(self._row_ends[-1])

    @cached_property
    def sha256(self) -> str:
        parts = [_SHA_FORMAT, self.num_samples, [(s.sha256, s.num_questions) for s in self.shards]]
        if self.include or self.exclude:
            chosen, start = hashlib.sha256(), 0
            for shard, count in zip(self.shards, self._counts.tolist(), strict=True):
                own = _chosen(shard, self.include, self.exclude)[:count] + np.int64(start)
                chosen.update(own.tobytes())
                start += shard.num_questions
            parts.append(chosen.hexdigest())
        elif (
            self.num_samples < sum(s.num_questions for s in self.shards)
            and len({s.extensions for s in self.shards}) > 1
        ):
            parts.append(self._counts.tolist())
        if self.questions_per_row > 1:
            parts.append(self.questions_per_row)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(shard:key, why) of every question that counts and is not a valid sample."""
        found = []
        for shard, count in zip(self.shards, self._counts.tolist(), strict=True):
            if shard.bad and count:
                kept = _chosen(shard, self.include, self.exclude)[:count]
                bad = sorted(shard.bad.keys() & set(kept.tolist()))
                found += [(shard.where(q), shard.bad[q]) for q in bad]
        return found

    def row(self, i: int) -> tuple[ShardIndex, list[int]]:
        """The shard of row i and the numbers of its questions in it."""
        if not 0 <= i < self.num_rows:
            raise IndexError(f"row {i} of {self.num_rows}")
        s = int(np.searchsorted(self._row_ends, i, "right"))
        place = i - int(self._row_ends[s] - self._sizes[s])
        first, last = (place, place + 1) if self.questions_per_row == 1 else self._starts(s)[place : place + 2].tolist()
        if not (self.include or self.exclude):
            return self.shards[s], list(range(first, last))
        return self.shards[s], _chosen(self.shards[s], self.include, self.exclude)[first:last].tolist()

    def shards_of(self, rows: np.ndarray) -> list[ShardIndex]:
        """The shards of these rows, in the order in which they first come."""
        return [self.shards[s] for s in dict.fromkeys(np.searchsorted(self._row_ends, rows, "right").tolist())]

    def locate(self, i: int) -> tuple[ShardIndex, int]:
        """The shard of row i and the number of its first question in it."""
        shard, questions = self.row(i)
        return shard, questions[0]

    def head(self, count: int | None) -> "Manifest":
        """The first `count` questions, of each kind of shard in proportion (all when None)."""
        if count is not None and count < 1:
            raise ValueError(f"max_samples: seen {count}, expected at least 1")
        return self if count is None else replace(self, num_samples=min(count, self.num_samples))

    def in_rows(self, questions_per_row: int) -> "Manifest":
        """The same questions, up to so many of one record in a row."""
        if questions_per_row < 1:
            raise ValueError(f"questions_per_row: seen {questions_per_row}, expected at least 1")
        return replace(self, questions_per_row=questions_per_row)

    def with_tags(self, include: Iterable[str] | None, exclude: Iterable[str] | None) -> "Manifest":
        """The questions with one of `include` (None: any) and none of `exclude`; ValueError when none is left.

        A tag that no question has gets a line in the log.
        """
        if not include and not exclude:
            return self
        chosen = replace(self, include=frozenset(include or ()), exclude=frozenset(exclude or ()))
        count = int(chosen._counts.sum())
        tags = set().union(*(text.split("\t") for shard in self.shards for text in shard.tag_sets))
        seen = (", ".join(sorted(tags - {""})) or "no tags")[:200]
        if not count:
            raise ValueError(f"include_tags, exclude_tags: seen no such record, expected some (tags: {seen})")
        for tag in sorted((chosen.include | chosen.exclude) - tags):
            log.warning("include_tags, exclude_tags: seen %r, which no record has; the tags here: %s", tag, seen)
        return replace(chosen, num_samples=count)

    def _starts(self, s: int) -> np.ndarray:
        return _row_starts(self.shards[s], self.include, self.exclude, int(self._counts[s]), self.questions_per_row)

    def summary(self) -> dict[str, object]:
        """Counts and hashes as plain values, for a manifest file; its `shardlist` is a wids shard index, of records."""
        shards = self.shards
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "shardlist": [{"url": s.path, "nsamples": s.num_records, "filesize": s.size} for s in shards],
            "version": INDEX_VERSION,
            "schema_version": SCHEMA_VERSION,
            "sha256": self.sha256,
            "num_samples": self.num_samples,
            "num_records": sum(s.num_records for s in shards),
            "num_bytes": self.num_bytes,
            "shards": [
                {
                    "path": s.path,
                    "num_samples": s.num_questions,
                    "num_records": s.num_records,
                    "num_bytes": s.size,
                    "sha256": s.sha256,
                }
                for s in shards
            ],
        }


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` each of several kinds gives (Webster's method): none loses one when `count` grows."""
    total = sum(sizes)
    if count >= total:
        return list(sizes)
    shares = [(2 * size * count + total) // (2 * total) for size in sizes]
    kinds = [kind for kind, size in enumerate(sizes) if size]
    while (left := count - sum(shares)) > 0:
        shares[min(kinds, key=lambda kind: (Fraction(2 * shares[kind] + 1, sizes[kind]), kind))] += 1
    while left < 0:
        shares[max(kinds, key=lambda kind: (Fraction(2 * shares[kind] - 1, sizes[kind]), kind))] -= 1
        left += 1
    return shares


@lru_cache(maxsize=MAPPED)
def _chosen(shard: ShardIndex, include: Tags, exclude: Tags) -> np.ndarray:
    """Numbers of a shard's questions with the right tags, int64."""
    if not include and not exclude:
        return np.arange(shard.num_questions)
    own = [set(text.split("\t")) for text in shard.tag_sets]
    right = np.array([(not include or bool(tags & include)) and not tags & exclude for tags in own])
    return np.flatnonzero(right[shard.entries.tags]).astype(np.int64)


@lru_cache(maxsize=MAPPED)
def _row_starts(shard: ShardIndex, include: Tags, exclude: Tags, count: int, per_row: int) -> np.ndarray:
    """Places among the first `count` chosen questions at which a row begins, and `count`."""
    chosen = _chosen(shard, include, exclude)[:count]
    records = np.searchsorted(shard.entries.questions, chosen, "right")
    first = np.flatnonzero(np.diff(records, prepend=-1))  # of the chosen questions of each record
    place = np.arange(count) - np.repeat(first, np.diff(first, append=count))
    return np.append(np.flatnonzero(place % per_row == 0), count)


def index_shards(paths: Paths) -> Manifest:
    """Index tars (a path, a glob, or a list of both), using and writing the index files beside them.

    Raises ValueError, one line, for a pattern without a file and for a tar that is empty, cut, or not as it should be.
    """
    files = expand(paths)
    missing = [path for path in files if known_index(path) is None]
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    if len(missing) < POOL_FROM or workers < 2:
        return Manifest.of(*(index_shard(path) for path in files))
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        made = dict(zip(missing, pool.map(index_shard, missing), strict=True))
    return Manifest.of(*(made.get(path) or index_shard(path) for path in files))


def check_manifest(manifest: Manifest, path: Path) -> None:
    """ValueError naming the first shard whose bytes are not those of a manifest file (ts-lightning data index --out).

    Every byte is read, and the index is compared with one that is made anew from them: the file beside a tar is trusted
    by size and time, this is not.
    """
    expected: dict[str, list[str]] = {}
    for name, sha256 in _stored_hashes(path):
        expected.setdefault(name, []).append(sha256)
    count = sum(map(len, expected.values()))
    for shard in manifest.shards:
        left = expected.get(os.path.basename(shard.path), [])
        if (seen := file_sha256(shard.provide())) not in left:
            wanted = f"sha256 {left[0][:12]}" if left else f"one of {count} shards"
            raise ValueError(f"{shard.path}: seen sha256 {seen[:12]}, expected {wanted} as in {path}")
        left.remove(seen)
        if not same_entries(replace(shard, arrays=stored_arrays(shard)), index_tar(shard.path)):
            raise ValueError(
                f"{shard.path}.idx: seen entries that are not the tar's, expected its own (remove this file)"
            )
    if missing := sorted(name for name, left in expected.items() if left):
        raise ValueError(f"{missing[0]}: seen no such shard, expected it as in {path}")


def _stored_hashes(path: Path) -> list[tuple[str, str]]:
    """(file name, sha256) of every shard of a manifest file."""
    with open_regular(path, MAX_MANIFEST) as file:
        text = file.read()
    try:
        return [(os.path.basename(shard["path"]), str(shard["sha256"])) for shard in json.loads(text)["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = "a manifest made by ts-lightning data index --out"
        raise ValueError(f"{path}: seen no list of shards ({error!r:.80}), expected {wanted}") from None
