"""Prediction files of ours, with their truth."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.data import index_shards
from ts_lightning.metrics.scoring import Record, read_predictions

_NAMED = 5  # so many keys stand in a message


def read_own(path: str | Path) -> list[Record]:
    """Prediction records with their truth; ValueError for a line that is none, a repeated question, a NaN box."""
    records = read_predictions(path)
    for number, record in enumerate(records, 1):
        _check(record, f"{path}:{number}: {record['key']}")
    _unique([f"{r['suite']}:{r['key']}" for r in records], path)
    return records


def completeness(records: Sequence[Record]) -> dict[str, str]:
    """For each suite, whether the shards that its records name ask more than is answered, where they are at hand.

    A suite may ask only some of its shards' questions, so that a partial file is told, not refused; a shard without any
    answer can't be noticed. ValueError for a record that its shard does not have.
    """
    asked: dict[str, dict[str, set[str]]] = {}
    for record in records:
        shards = asked.setdefault(record["suite"], {})
        shards.setdefault(record.get("shard") or "", set()).add(record["key"])
    known: dict[str, set[str]] = {}
    said = {}
    for suite, shards in asked.items():
        if not all(Path(shard).is_file() for shard in shards):
            said[suite] = "not checked: the shards of its answers are not here (ts-lightning evaluate --shards checks)"
            continue
        total = 0
        for shard, keys in shards.items():
            if shard not in known:
                known[shard] = {key for one in index_shards(shard).shards for key in one.keys}
            if foreign := sorted(keys - known[shard]):
                raise ValueError(f"suite {suite}: seen {_listed(foreign)}, expected questions of their shard {shard}")
            total += len(known[shard])
        answered = sum(map(len, shards.values()))
        said[suite] = f"{answered} of the {total} questions of the shards that its answers name"
    return said


def _check(record: Record, where: str) -> None:
    """ValueError unless what every protocol reads has its kind, and a question about a box has a box and a size."""
    truth, what = record["truth"], "expected a prediction record"
    if not isinstance(truth, dict) or not all(isinstance(record[name], str) for name in ("suite", "key", "text")):
        raise ValueError(f"{where}: seen no object in truth or no text in suite, key, text, {what}")
    answers = truth.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where}: truth.answers: seen {answers}, expected a list of texts")
    named = [("box", record.get("box")), ("truth.box", truth.get("box"))]
    for name, box in [*named, *(("truth.boxes", box) for box in truth.get("boxes") or [])]:
        if box is not None and not _numbers(box, 4):
            raise ValueError(f"{where}: {name}: seen {box}, expected four finite numbers")
    if truth.get("box") is None:
        return
    for name in ("box", "image_size", "subtask"):
        if name not in record:
            raise ValueError(f"{where}: seen no {name}, {what} of a question about a box to have it")
    if not _numbers(record["image_size"], 2) or min(record["image_size"]) <= 0:
        raise ValueError(f"{where}: image_size: seen {record['image_size']}, expected width and height in pixels")


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )


def _unique(keys: Sequence[str], path: str | Path) -> None:
    seen: set[str] = set()
    if twice := sorted({key for key in keys if key in seen or seen.add(key)}):  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: seen {_listed(twice)} more than once, expected one answer a question")


def _listed(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
