"""The index of shards: where every record lies, what it weighs, and that nothing of it is missing."""

import glob
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise, product
from pathlib import Path

import numpy as np

from ts_lightning.data.remote import fetch, is_url
from ts_lightning.data.sample import SCHEMA_VERSION
from ts_lightning.data.tar import Member, first_record, open_regular, scan_tar

log = logging.getLogger("ts_lightning.data")
INDEX_VERSION = 3
MAX_INDEX, MAX_MANIFEST = 2 << 30, 1 << 30  # bytes
MAX_PATTERNS = 1_000_000  # shards that one {000..999} may stand for
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class ShardIndex:
    """One tar: `members` is int64 [M, 3] of (offset, size, crc32); record r owns rows starts[r] to starts[r + 1].

    `names` are the members' extensions ("json", "jpg", "0.jpg"), `tags` each record's, joined by tabs; `bad` maps a
    key to what is wrong with its JSON.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    keys: list[str]
    tags: list[str]
    names: list[str]
    starts: list[int]
    members: np.ndarray
    bad: dict[str, str]

    def record(self, r: int) -> list[tuple[str, int, int, int]]:
        """(extension, offset, size, crc32) of every member of record r."""
        rows = slice(self.starts[r], self.starts[r + 1])
        members = self.members[rows].tolist()
        return [(name, *member) for name, member in zip(self.names[rows], members, strict=True)]

    def member(self, m: int) -> Member:
        """Entry m of all members."""
        return Member(self.names[m], int(self.members[m, 0]), int(self.members[m, 1]))

    def where(self, r: int) -> str:
        """`shard:key`, the name of record r in messages."""
        return f"{self.path}:{self.keys[r]}"


@dataclass(frozen=True)
class Manifest:
    """Shards in order; the first `num_samples` records count (of `chosen`, sorted numbers, where tags chose).

    `sha256` names their content, not their place.
    """

    shards: tuple[ShardIndex, ...]
    num_samples: int
    chosen: np.ndarray | None = None

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(shard.keys) for shard in self.shards))

    @cached_property
    def sha256(self) -> str:
        parts = [SCHEMA_VERSION, self.num_samples, [(s.sha256, len(s.keys)) for s in self.shards]]
        if self.chosen is not None:
            parts.append(hashlib.sha256(self.chosen[: self.num_samples].tobytes()).hexdigest())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def shard_sizes(self) -> list[int]:
        """Records of every shard that count."""
        if self.chosen is not None:
            return np.diff(np.searchsorted(self.chosen[: self.num_samples], [0, *self._ends])).tolist()
        starts = [0, *self._ends[:-1]]
        return [max(0, min(end, self.num_samples) - start) for start, end in zip(starts, self._ends, strict=True)]

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(shard:key, why) of every record that counts and whose JSON is not a valid sample."""
        if not any(shard.bad for shard in self.shards):
            return []
        places = [self.locate(i) for i in range(self.num_samples)]
        return [(s.where(r), s.bad[s.keys[r]]) for s, r in places if s.keys[r] in s.bad]

    def locate(self, i: int) -> tuple[ShardIndex, int]:
        """The shard of record i and its place in it."""
        if not 0 <= i < self.num_samples:
            raise IndexError(f"record {i} of {self.num_samples}")
        i = i if self.chosen is None else int(self.chosen[i])
        s = bisect_right(self._ends, i)
        return self.shards[s], i - (self._ends[s - 1] if s else 0)

    def head(self, count: int | None) -> "Manifest":
        """The first `count` records (all when None)."""
        if count is not None and count < 1:
            raise ValueError(f"max_samples: seen {count}, expected at least 1")
        return self if count is None else replace(self, num_samples=min(count, self.num_samples))

    def with_tags(self, include: Iterable[str] | None, exclude: Iterable[str] | None) -> "Manifest":
        """The records with one of `include` (None: any) and none of `exclude`; ValueError when none is left."""
        if not include and not exclude:
            return self
        wanted, unwanted = set(include or ()), set(exclude or ())
        tags = [set(text.split("\t")) for shard in self.shards for text in shard.tags][: self.num_samples]
        kept = [i for i, own in enumerate(tags) if (not wanted or own & wanted) and not own & unwanted]
        if not kept:
            seen = ", ".join(sorted(set().union(*tags) - {""})) or "no tags"
            raise ValueError(f"include_tags, exclude_tags: seen no such record, expected some (tags: {seen[:200]})")
        return replace(self, num_samples=len(kept), chosen=np.array(kept, dtype=np.int64))

    def summary(self) -> dict[str, object]:
        """Counts and hashes as plain values, for a manifest file; `shardlist` is a wids shard index."""
        sizes = list(zip(self.shards, self.shard_sizes, strict=True))
        return {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "shardlist": [{"url": s.path, "nsamples": n, "filesize": s.size} for s, n in sizes],
            "version": INDEX_VERSION,
            "schema_version": SCHEMA_VERSION,
            "sha256": self.sha256,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
            "shards": [{"path": s.path, "num_samples": n, "num_bytes": s.size, "sha256": s.sha256} for s, n in sizes],
        }


def index_shards(paths: Paths) -> Manifest:
    """Index tars (a path, a glob, or a list of both), using and writing the index files beside them.

    Raises ValueError, one line, for a pattern without a file and for a tar that is empty, cut, or not as it should be.
    """
    shards = tuple(index_shard(path) for path in expand(paths))
    return Manifest(shards, sum(len(shard.keys) for shard in shards))


def expand(paths: Paths) -> list[str]:
    """Files of `paths`, {000..010} and globs expanded; ValueError for a pattern that matches none, or a file twice."""
    patterns = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not patterns:
        raise ValueError("shards: seen an empty list, expected at least one path or pattern")
    files: list[str] = []
    for pattern in (one for path in patterns for one in _braces(os.fspath(path))):
        if is_url(pattern):
            files += (found := fetch(pattern))
            if not found:
                raise ValueError(f"{pattern}: seen no such shard, expected at least one .tar file")
            continue
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [f for f in found if os.path.isfile(f)]
        if not found:
            seen = "a folder, pipe or device" if os.path.exists(pattern) else "no such shard"
            raise ValueError(f"{pattern}: seen {seen}, expected at least one .tar file")
        files += found
    if twice := sorted({f for f in files if files.count(f) > 1}) if len(set(files)) < len(files) else []:
        raise ValueError(f"{twice[0]}: seen twice in the list of shards, expected once")
    return files


def _braces(pattern: str) -> list[str]:
    """Webdataset's notation: x-{000..002}.tar stands for three shards, each of which has to be there."""
    if "{" not in pattern or os.path.exists(pattern):
        return [pattern]
    choices: list[Sequence[str]] = []
    for number, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):  # every second part stood in braces
        ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", part) if number % 2 else None
        if ends:
            first, last = int(ends[1]), int(ends[2])
            width = max(map(len, ends.groups())) if any(end[0] == "0" for end in ends.groups()) else 0
            if abs(last - first) >= MAX_PATTERNS:
                raise ValueError(f"{pattern}: seen more than {MAX_PATTERNS} shards, expected fewer")
            step = 1 if last >= first else -1
            choices.append([f"{value:0{width}d}" for value in range(first, last + step, step)])
        else:
            choices.append(part.split(",") if number % 2 and "," in part else [f"{{{part}}}" if number % 2 else part])
    if math.prod(map(len, choices)) > MAX_PATTERNS:
        raise ValueError(f"{pattern}: seen more than {MAX_PATTERNS} shards, expected fewer")
    return ["".join(parts) for parts in product(*choices)]


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
        if (seen := _sha256(shard.path)) not in left:
            wanted = f"sha256 {left[0][:12]}" if left else f"one of {count} shards"
            raise ValueError(f"{shard.path}: seen sha256 {seen[:12]}, expected {wanted} as in {path}")
        left.remove(seen)
        if not same_entries(shard, _scanned(shard.path)):
            raise ValueError(
                f"{shard.path}.idx: seen other entries than in the tar, expected the tar's (remove this file)"
            )
    if missing := sorted(name for name, left in expected.items() if left):
        raise ValueError(f"{missing[0]}: seen no such shard, expected it as in {path}")


def same_entries(a: ShardIndex, b: ShardIndex) -> bool:
    """Whether two indexes say the same about their records, wherever the tar lies and whenever it was written."""
    same = all(getattr(a, name) == getattr(b, name) for name in ("sha256", "keys", "tags", "names", "starts", "bad"))
    return same and np.array_equal(a.members, b.members)


def _stored_hashes(path: Path) -> list[tuple[str, str]]:
    """(file name, sha256) of every shard of a manifest file."""
    with open_regular(path, MAX_MANIFEST) as file:
        text = file.read()
    try:
        return [(os.path.basename(shard["path"]), str(shard["sha256"])) for shard in json.loads(text)["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = "a manifest made by ts-lightning data index --out"
        raise ValueError(f"{path}: seen no list of shards ({error!r:.80}), expected {wanted}") from None


def index_shard(path: str) -> ShardIndex:
    """The index of one tar: from the file beside it when size and time (or else sha256) agree, or made anew."""
    with open_regular(path) as file:
        stat = os.fstat(file.fileno())
    old = _load(path)
    if old is not None and old.size == stat.st_size:
        if old.mtime_ns == stat.st_mtime_ns:
            return old
        if old.sha256 == _sha256(path):
            return _save(replace(old, mtime_ns=stat.st_mtime_ns))
    if old is not None:
        log.warning(f"{path}: seen other bytes than when it was indexed; indexed anew, as it is now")
    return _save(_scanned(path))


def _scanned(path: str) -> ShardIndex:
    """The index of a tar from its bytes alone."""
    records, size, mtime_ns, sha256 = scan_tar(path)
    return ShardIndex(
        path=path,
        size=size,
        mtime_ns=mtime_ns,
        sha256=sha256,
        keys=[record.key for record in records],
        tags=[record.tags for record in records],
        names=[name for record in records for name in record.members],
        starts=[0, *accumulate(len(record.members) for record in records)],
        members=np.array([row for record in records for row in record.members.values()], dtype=np.int64),
        bad={record.key: record.bad.removeprefix(f":{record.key}: ") for record in records if record.bad},
    )


def _sha256(path: str) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _load(path: str) -> ShardIndex | None:
    """The index file beside a tar, or None when it is missing, damaged or of another version."""
    try:
        with open_regular(path + ".idx", MAX_INDEX) as file:
            stored = json.load(file)
        if stored.pop("versions") != [INDEX_VERSION, SCHEMA_VERSION]:
            return None
        members = np.array(stored.pop("members"), dtype=np.int64).reshape(-1, 3)
        index = ShardIndex(path=path, members=members, **stored)
        return index if _whole(index) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        return None


def _whole(index: ShardIndex) -> bool:
    """Whether the parts are of their types, fit together, and go through the tar from its beginning to its end.

    A file beside a tar may be anyone's. That each entry is what its header in the tar says is seen when it is read.
    """
    texts = [index.sha256, *index.keys, *index.tags, *index.names, *index.bad, *index.bad.values()]
    if not all(type(text) is str for text in texts) or not all(type(start) is int for start in index.starts):
        return False
    if not len(index.keys) == len(index.tags) == len(index.starts) - 1 == len(set(index.keys)):
        return False
    counted = len(index.names) == len(index.members) == index.starts[-1] and index.starts[0] == 0
    ends = index.members[:, 0] + (index.members[:, 1] + 511) // 512 * 512
    headers = index.members[:, 0] - np.concatenate([[0], ends[:-1]])  # from one member's end to the next one's bytes
    forward = (headers >= 512).all() and (index.members >= 0).all() and ends[-1] <= index.size
    return bool(counted and forward and all(a < b for a, b in pairwise(index.starts)) and _ends_there(index))


def _ends_there(index: ShardIndex) -> bool:
    """Whether no record of the tar comes behind the last one of the index."""
    with open_regular(index.path) as file:

        def read_at(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        return not first_record(read_at, index.member(-1).end).name


def _save(index: ShardIndex) -> ShardIndex:
    """Write the index file beside the tar, whole or not at all; in a read-only folder it stays in memory."""
    stored = {f.name: getattr(index, f.name) for f in fields(index) if f.name != "path"}
    stored |= {"versions": [INDEX_VERSION, SCHEMA_VERSION], "members": index.members.tolist()}
    path = Path(index.path + ".idx")
    if path.exists() and not path.is_file():
        return index  # a pipe or folder of that name is somebody's; nothing is put in its place
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with open(descriptor, "w") as file:
                json.dump(stored, file, separators=(",", ":"))
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return index
