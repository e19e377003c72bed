"""Generation over shards: one at a time or as a SLURM array, resumable, with progress and a card."""

import glob
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ts_lightning.data.file_lock import locked
from ts_lightning.data.index import index_shard
from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.data.write import remove_shards, write_shards
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.llm_client import RequestFailed, RequestRefused, Usage
from ts_lightning.pipelines.scenes import picture_key
from ts_lightning.pipelines.scout_checks import question_words

REFUSED = "pictures that the server refuses to answer about"
INVALID = "answers of which no valid record can be made"
Make = Callable[[Any], Iterable[Sample]]  # of a scene, or of a sample where `items` says so


def shard_samples(path: Path) -> Iterator[Sample]:
    """The records of one shard, one after the other."""
    return iter(ShardReader(index_shards(str(path))))


def my_shards(paths: list[Path], number: int | None = None, count: int | None = None) -> list[Path]:
    """Every `count`-th shard from `number` (0 is the first); by default the SLURM array task's share, else all."""
    if number is None or count is None:
        number, count = array_task()
    if not 0 <= number < count:
        raise ValueError(f"shard share: seen number {number} of {count}, expected one from 0 and below the count")
    return sorted(paths)[number::count]


def array_task() -> tuple[int, int]:
    """This task's place in its SLURM array, and the array's size; (0, 1) outside of an array.

    Raises ValueError for an array with gaps (3,7): a task can't tell which place it has among the others.
    """
    task = {name: int(os.environ.get(f"SLURM_ARRAY_TASK_{name}") or 0) for name in ("ID", "MIN", "MAX", "COUNT")}
    if not task["COUNT"]:
        return 0, 1
    step = (task["MAX"] - task["MIN"]) // max(task["COUNT"] - 1, 1) or 1
    if task["MIN"] + step * (task["COUNT"] - 1) != task["MAX"] or (task["ID"] - task["MIN"]) % step:
        seen = f"{task['COUNT']} tasks from {task['MIN']} to {task['MAX']}"
        raise ValueError(f"SLURM array: seen {seen}, expected --array=FIRST-LAST without gaps, or --share i/n")
    return (task["ID"] - task["MIN"]) // step, task["COUNT"]


def work(
    items: Callable[[Iterator[Sample]], Iterable[Any]],
    path: Path,
    out: Path,
    prefix: str,
    make: Make,
    settings: dict[str, Any],
    dropped: Dropped,
    usage: Usage,
    workers: int,
) -> dict[str, Any] | None:
    """Make `out/PREFIX-NAME-*.tar` from one input shard and `PREFIX-NAME.json` beside it; None where that was done.

    `items` makes what `make` takes (scenes, or the samples themselves) from the records. Done is a file of results with
    the same settings and input; where these differ, a line says so and the shard is made anew. Samples keep the order
    of the input whatever `workers` is. RequestFailed stops the shard; answers that came before are in the cache, so the
    next run goes on from there. Call it under `only_one(out, NAME)`: what a killed process left over is removed first.
    """
    name = f"{prefix}-{path.stem}"
    note = out / f"{name}.json"
    wanted = {"input": path.name, "sha256": index_shard(str(path)).sha256, **settings}
    known = read_note(note)
    if known and known["settings"] == wanted and all((out / shard).is_file() for shard in known["shards"]):
        return None
    if known and known["settings"] != wanted:
        differ = "; ".join(differences(known["settings"], wanted))
        print(f"{path.name}: done before with other settings, made anew: {differ}", file=sys.stderr)
    note.unlink(missing_ok=True)
    remove_unfinished(out, name)
    counts = {"scenes": 0, "samples": 0}
    progress = Progress(name, index_shard(str(path)).num_questions, usage)

    asked: dict[str, set[str]] = {}

    def tried(item: Any) -> list[Sample]:
        try:
            return [sample for sample in make(item) if valid(sample, dropped)]
        except RequestRefused as error:
            dropped.note(REFUSED, f"{item.key}: {error}")
            return []

    def made() -> Iterator[Sample]:
        for found in in_order(tried, items(shard_samples(path)), workers):
            counts["scenes"] += 1
            for sample in found:
                if repeated(sample, asked):
                    dropped["near-duplicate question about the same picture"] += 1
                    continue
                counts["samples"] += 1
                yield sample
            progress.step(counts["scenes"], counts["samples"])

    started = time.monotonic()
    samples = made()
    first = next(samples, None)  # a shard without a described picture makes none
    shards = remove_shards(out, name) if first is None else write_shards(chain([first], samples), out, name)
    progress.end()
    if dropped[REFUSED] and first is None:  # not this or that picture: nothing is asked as it should be
        raise RequestFailed(f"seen no sample and the refusal of {dropped.names[REFUSED][0]}, expected answers")
    seconds = time.monotonic() - started
    result = {
        "settings": wanted,
        "shards": [shard.name for shard in shards],
        **counts,
        "dropped": dict(dropped),
        "usage": usage.as_dict(),
        "seconds": round(seconds, 3),
        "samples_per_second": round(counts["samples"] / max(seconds, 1e-9), 1),
    }
    replace_text(note, json.dumps(result, indent=1) + "\n")
    return result


@contextmanager
def only_one(out: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether no other living process holds this name in this folder; with `wait`, once none does."""
    (out / ".locks").mkdir(parents=True, exist_ok=True)
    with locked(out / ".locks" / name, math.inf if wait else 0) as free:
        yield free


def read_note(note: Path) -> dict[str, Any] | None:
    """The results of a shard; None where there are none, or another file by that name."""
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(known, dict) and {"settings", "shards", "samples"} <= known.keys()
    return known if whole and isinstance(known["settings"], dict) else None


def differences(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings in which a note differs; one of an older version lacks some."""
    names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    return [f"{name}: seen {known.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}" for name in names]


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one; call it under `only_one`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def remove_unfinished(out: Path, name: str) -> None:
    """What `write_shards` of a killed process left in its folder for shards of this name."""
    for folder in out.glob(f".{glob.escape(name)}-????????"):  # as tempfile names it
        if folder.is_dir():
            shutil.rmtree(folder)


def valid(sample: Sample, dropped: Dropped) -> bool:
    """Whether a made sample may be written; one that may not is counted: its answer, kept, would stop every run."""
    try:
        sample.validate()
    except ValueError as error:
        dropped.note(INVALID, error)
        return False
    return True


def repeated(sample: Sample, asked: dict[str, set[str]]) -> bool:
    """Whether the question was asked about this picture before; `asked` holds the present picture's questions alone."""
    question = (sample.meta or {}).get("question")
    if question is None:
        return False
    picture = picture_key(sample.images[0].name, sample.image_bytes[0])
    words = " ".join(question_words(question))
    if picture not in asked:  # several captions of a picture follow each other
        asked.clear()
    known = asked.setdefault(picture, set())
    again = words in known
    known.add(words)
    return again


def in_order(make: Make, items: Iterable[Any], workers: int) -> Iterator[list[Sample]]:
    """`make` of each item, `workers` at once, in the order of the items; at most twice as many wait in memory."""
    if workers <= 1:
        for item in items:
            yield list(make(item))
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[Sample]]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(lambda one: list(make(one)), item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except RequestFailed:
            for future in waiting:
                future.cancel()
            raise


class Progress:
    """A line with rate, failures and the expected end: redrawn on a terminal, every ten seconds in a log."""

    def __init__(self, name: str, total: int, usage: Usage) -> None:
        self.name, self.total, self.usage = name, total, usage
        self.start = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def step(self, scenes: int, samples: int) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 10):
            return
        self.last = now
        rate = scenes / max(now - self.start, 1e-9)
        left = f", {(self.total - scenes) / rate:.0f} s left" if self.total > scenes else ""
        text = f"{self.name}: {scenes} pictures, {samples} samples, {rate:.1f} pictures/s"
        text += f", {self.usage.retries} retries, {self.usage.failed + self.usage.refused} failures{left}"
        print(f"\r{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
