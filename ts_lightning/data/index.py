"""The index beside a tar: where every record lies, what it weighs, and how many questions it has.

NAME.tar.idx is a line of JSON and then plain arrays, which are mapped into memory when a record is first looked up: a
start costs a line a shard, and the processes of a machine share one copy. A file beside a tar may be anyone's: what it
says is compared with the tar, in parts when they are first used, and record by record when they are read.
"""

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ts_lightning.data.record import SCHEMA_VERSION, question_key, split_key
from ts_lightning.data.remote import is_remote, provide
from ts_lightning.data.tar import Member, first_record, open_regular, scan_tar

log = logging.getLogger("ts_lightning.data")
INDEX_VERSION = 4
MAX_HEADER = 256 << 20  # bytes of the line; it names every bad question
MAPPED = 256  # indexes that a process holds mapped at a time
_ALIGNED = 64


class Entries(NamedTuple):
    """The arrays of an index, for M members, R records and Q questions.

    Member m has `offsets[m]`, `sizes[m]`, `crcs[m]`, and `extensions[m]`, a number in the index's table. Record r owns
    members starts[r] to starts[r + 1], questions questions[r] to questions[r + 1], and key bytes key_ends[r] to
    key_ends[r + 1]. Question q has the tags of `tags[q]`, a number in the table of sets of tags.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray
    extensions: np.ndarray
    starts: np.ndarray
    questions: np.ndarray
    tags: np.ndarray
    key_ends: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one tar without its arrays; `tag_sets` are joined by tabs, `bad` maps a question to its fault.

    `arrays` holds the bytes of the arrays where there is no file for them.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    num_members: int
    num_records: int
    num_questions: int
    num_key_bytes: int
    extensions: tuple[str, ...]
    tag_sets: tuple[str, ...]
    bad: dict[int, str] = field(default_factory=dict)
    arrays: bytes | None = field(default=None, repr=False)

    def __hash__(self) -> int:
        return hash((self.path, self.sha256, self.mtime_ns))

    @property
    def entries(self) -> Entries:
        """The arrays, mapped and checked at first use; ValueError where they can't be had for this tar."""
        return _entries(self)

    def question(self, q: int) -> tuple[int, int]:
        """(record, place in it) of question q."""
        starts = self.entries.questions
        r = int(np.searchsorted(starts, q, "right")) - 1
        return r, q - int(starts[r])

    def key(self, r: int) -> str:
        """The key of record r."""
        entries = self.entries
        return entries.keys[entries.key_ends[r] : entries.key_ends[r + 1]].tobytes().decode(errors="replace")

    def question_keys(self) -> list[str]:
        """The name of every question, as in `Sample.key`."""
        counts = np.diff(self.entries.questions).tolist()
        return [question_key(self.key(r), j, count) for r, count in enumerate(counts) for j in range(count)]

    def where(self, q: int) -> str:
        """`shard:key`, the name of question q in messages."""
        r, j = self.question(q)
        return f"{self.path}:{question_key(self.key(r), j, self.num_questions_of(r))}"

    def num_questions_of(self, r: int) -> int:
        """How many questions record r has."""
        return int(self.entries.questions[r + 1] - self.entries.questions[r])

    def tags(self, q: int) -> str:
        """The tags of question q, joined by tabs."""
        return self.tag_sets[int(self.entries.tags[q])]

    def find(self, name: str) -> int:
        """The number of the question of this name; KeyError where there is none."""
        key, j = split_key(name)
        r = _places(self).get(key)
        if r is None or j >= self.num_questions_of(r):
            raise KeyError(name)
        return int(self.entries.questions[r]) + j

    def record(self, r: int) -> list[tuple[str, int, int, int]]:
        """(extension, offset, size, crc32) of every member of record r."""
        entries = self.entries
        rows = slice(int(entries.starts[r]), int(entries.starts[r + 1]))
        names = [self.extensions[number] for number in entries.extensions[rows].tolist()]
        parts = (entries.offsets[rows].tolist(), entries.sizes[rows].tolist(), entries.crcs[rows].tolist())
        return list(zip(names, *parts, strict=True))

    def provide(self) -> str:
        """The path, after a tar that is still at its source was fetched."""
        if not os.path.exists(self.path) and is_remote(self.path):
            provide(self.path, self.sha256, self.mtime_ns)
        return self.path

    def begin(self, r: int) -> int:
        """Where the headers of record r begin in the tar."""
        m = int(self.entries.starts[r]) - 1
        return Member("", int(self.entries.offsets[m]), int(self.entries.sizes[m])).end if m >= 0 else 0


def known_index(path: str) -> ShardIndex | None:
    """The index beside a tar when size and time agree, else None. A tar that is still at its source is as indexed."""
    old = _load(path)
    if not os.path.exists(path) and is_remote(path):
        if old is not None:
            return old
        provide(path)
    with open_regular(path) as file:
        stat = os.fstat(file.fileno())
    return old if old is not None and (old.size, old.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None


def index_shard(path: str) -> ShardIndex:
    """The index of one tar: from the file beside it when size and time (or else sha256) agree, or made anew."""
    if (known := known_index(path)) is not None:
        return known
    old, stat = _load(path), os.stat(path)
    if old is not None and old.size == stat.st_size and old.sha256 == file_sha256(path):
        return _save(replace(old, mtime_ns=stat.st_mtime_ns, arrays=stored_arrays(old)))
    if old is not None:
        log.warning(f"{path}: seen other bytes than when it was indexed; indexed anew, as it is now")
    return _save(index_tar(path))


def index_tar(path: str) -> ShardIndex:
    """The index of a tar from its bytes alone, its arrays in memory."""
    records, size, mtime_ns, sha256 = scan_tar(path)
    rows = [(name, *row) for record in records for name, row in record.members.items()]
    questions = [question for record in records for question in record.questions]
    extensions, tag_sets = sorted({row[0] for row in rows}), sorted({tags for tags, _ in questions})
    keys = [record.key.encode() for record in records]
    numbers = {name: number for number, name in enumerate(extensions)}
    sets = {tags: number for number, tags in enumerate(tag_sets)}
    columns = (
        *zip(*((offset, size, crc, numbers[name]) for name, offset, size, crc in rows), strict=True),
        [0, *accumulate(len(record.members) for record in records)],
        [0, *accumulate(len(record.questions) for record in records)],
        [sets[tags] for tags, _ in questions],
        [0, *accumulate(map(len, keys))],
        np.frombuffer(b"".join(keys), dtype=np.uint8),
    )
    return ShardIndex(
        path=path,
        size=size,
        mtime_ns=mtime_ns,
        sha256=sha256,
        num_members=len(rows),
        num_records=len(records),
        num_questions=len(questions),
        num_key_bytes=sum(map(len, keys)),
        extensions=tuple(extensions),
        tag_sets=tuple(tag_sets),
        bad={q: why for q, (_, why) in enumerate(questions) if why},
        arrays=b"".join(_padded(np.asarray(c, d).tobytes()) for c, d in zip(columns, _TYPES, strict=True)),
    )


def file_sha256(path: str) -> str:
    """Hex sha256 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


_TYPES = ("<i8", "<i8", "<u4", "<u4", "<i8", "<i8", "<u4", "<i8", "u1")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _lengths(index: ShardIndex) -> tuple[int, ...]:
    members, records, questions = index.num_members, index.num_records, index.num_questions
    return (members, members, members, members, records + 1, records + 1, questions, records + 1, index.num_key_bytes)


def _num_bytes(index: ShardIndex) -> int:
    return sum(-(-n * np.dtype(d).itemsize // 8) * 8 for n, d in zip(_lengths(index), _TYPES, strict=True))


@lru_cache(maxsize=MAPPED)
def _entries(index: ShardIndex) -> Entries:
    found = _map(index)
    if found is not None and _fits(index, found):
        return found
    log.warning(f"{index.path}: seen an index beside it that does not fit the tar; made anew from the tar")
    fresh = index_tar(index.path)
    if not same_entries(replace(index, arrays=None), replace(fresh, arrays=None)):
        raise ValueError(f"{index.path}: seen other records than its index says, expected those (remove the .idx file)")
    found = _map(fresh)
    assert found is not None
    _save(fresh)
    return found


@lru_cache(maxsize=8)
def _places(index: ShardIndex) -> dict[str, int]:
    return {index.key(r): r for r in range(index.num_records)}


def same_entries(a: ShardIndex, b: ShardIndex) -> bool:
    """Whether two indexes say the same of their records, wherever the tar lies and whenever it was written."""
    names = ("sha256", "size", "num_members", "num_records", "num_questions", "extensions", "tag_sets", "bad")
    same = all(getattr(a, name) == getattr(b, name) for name in names)
    return same and a.arrays == b.arrays


def stored_arrays(index: ShardIndex) -> bytes | None:
    """The bytes of the arrays as they lie beside the tar, or in memory."""
    if index.arrays is not None:
        return index.arrays
    with suppress(OSError, ValueError), open_regular(index.path + ".idx") as file:
        file.seek(_num_header_bytes(index))
        return file.read()
    return None


def _map(index: ShardIndex) -> Entries | None:
    """Views of the arrays in the file beside the tar, or in memory; None where the file is another one by now."""
    start = 0
    if index.arrays is not None:
        raw = np.frombuffer(index.arrays, dtype=np.uint8)
    else:
        if (now := _load(index.path)) is None or now != index:
            return None
        raw, start = np.memmap(index.path + ".idx", dtype=np.uint8, mode="r"), _num_header_bytes(index)
    if len(raw) != start + _num_bytes(index):
        return None
    columns = []
    for length, kind in zip(_lengths(index), _TYPES, strict=True):
        size = length * np.dtype(kind).itemsize
        columns.append(np.asarray(raw[start : start + size]).view(kind))
        start += -(-size // 8) * 8
    return Entries(*columns)


def _fits(index: ShardIndex, entries: Entries) -> bool:
    """Whether the arrays fit together and go through the tar from its beginning to its end, leaving nothing out.

    That each entry is what its header in the tar says is seen when it is read.
    """
    totals = (
        (entries.starts, index.num_members),
        (entries.questions, index.num_questions),
        (entries.key_ends, index.num_key_bytes),
    )
    for steps, total in totals:
        if steps[0] != 0 or steps[-1] != total or not (np.diff(steps) > 0).all():
            return False
    if (entries.extensions >= len(index.extensions)).any() or (entries.tags >= len(index.tag_sets)).any():
        return False
    for values in (entries.offsets, entries.sizes):
        if (values < 0).any() or (values > index.size).any():
            return False
    ends = entries.offsets + (entries.sizes + 511) // 512 * 512
    headers = entries.offsets - np.concatenate([[0], ends[:-1]])  # from one member's end to the next one's bytes
    if (headers < 512).any() or ends[-1] > index.size:
        return False
    if not os.path.exists(index.path) and is_remote(index.path):
        return True  # its bytes are compared with the index's sha256 when they come
    with open_regular(index.path) as file:

        def read_at(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        return not first_record(read_at, int(ends[-1])).name


def _facts(index: ShardIndex) -> dict[str, Any]:
    """What the line of an index file says."""
    stored = {f.name: getattr(index, f.name) for f in fields(index) if f.name not in ("path", "arrays")}
    return {"versions": [INDEX_VERSION, SCHEMA_VERSION], **stored, "bad": {str(q): why for q, why in index.bad.items()}}


def _header(index: ShardIndex) -> bytes:
    line = json.dumps(_facts(index), separators=(",", ":")).encode()
    return line + b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"


def _num_header_bytes(index: ShardIndex) -> int:
    return len(_header(index))


def _load(path: str) -> ShardIndex | None:
    """The facts in the index file beside a tar, or None when it is missing, damaged or of another version."""
    try:
        with open_regular(path + ".idx") as file:
            line = file.readline(MAX_HEADER)
            stored = json.loads(line)
            if stored.pop("versions") != [INDEX_VERSION, SCHEMA_VERSION]:
                return None
            bad = {int(q): why for q, why in stored.pop("bad").items()}
            tables: dict[str, Any] = {name: tuple(stored.pop(name)) for name in ("extensions", "tag_sets")}
            index = ShardIndex(path=path, bad=bad, **tables, **stored)
            counts = (index.num_members, index.num_records, index.num_questions, index.num_key_bytes)
            numbers = [*counts, index.size, index.mtime_ns, *bad]
            texts = [index.sha256, *index.extensions, *index.tag_sets, *index.bad.values()]
            whole = all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) and all(type(t) is str for t in texts)
            whole = whole and min(counts) > 0
            size = os.fstat(file.fileno()).st_size
            return index if whole and line == _header(index) and size == len(line) + _num_bytes(index) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _save(index: ShardIndex) -> ShardIndex:
    """Write the index file beside the tar, whole or not at all; in a read-only folder it stays in memory."""
    path = Path(index.path + ".idx")
    if index.arrays is None or (path.exists() and not path.is_file()):  # a pipe or folder of that name is somebody's
        return index
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with open(descriptor, "wb") as file:
                file.write(_header(index))
                file.write(index.arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            return replace(index, arrays=None)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return index
