"""Prediction files: our own, and other tools', joined with the truth of shards."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.codecs import Codec
from ts_lightning.metrics.record import prediction_record
from ts_lightning.metrics.scoring import Record, read_predictions

FORMATS = ("ours", "lmms-eval", "vlmevalkit")
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


def join(
    answers: Mapping[str, str], shards: str | Sequence[str], codec: Codec, suite: str, allow_missing: bool = False
) -> list[Record]:
    """Records of the shards' questions with `answers` (by key, id, or `meta.question_id`), read with `codec`.

    ValueError for answers to questions that are not in the shards, and for missing ones unless `allow_missing`: then
    they are empty answers, which are wrong.
    """
    manifest = index_shards(shards)
    reader = ShardReader(manifest)
    left, missing = dict(answers), []
    records: list[Record] = []
    for i in range(manifest.num_samples):
        sample = reader.read(i)
        name = next((name for name in _names(sample) if name in left), None)
        if name is None:
            missing.append(sample.key)
        records.append(prediction_record(sample, "" if name is None else left.pop(name), codec, suite))
    if left:
        raise ValueError(f"predictions: seen {_listed(left)} that the shards don't ask, expected their questions alone")
    if missing and not allow_missing:
        raise ValueError(f"predictions: seen no answer to {_listed(missing)}, expected all (or --allow-missing)")
    return records


def read_answers(path: str | Path, kind: str) -> dict[str, str]:
    """Answers by question from a result file of lmms-eval (samples, JSON lines) or VLMEvalKit (tsv, csv, json).

    "ours" takes JSON lines with `key` and `text`. ValueError with the line for what is no such file.
    """
    readers = {"ours": _own, "lmms-eval": _lmms_eval, "vlmevalkit": _vlmevalkit}
    if kind not in readers:
        raise ValueError(f"--format: seen {kind!r}, expected one of {', '.join(FORMATS)}")
    pairs = list(readers[kind](Path(path)))
    _unique([key for key, _ in pairs], path)
    return dict(pairs)


def _own(path: Path) -> Iterable[tuple[str, str]]:
    for number, line in _json_lines(path):
        yield _field(line, ("key",), f"{path}:{number}"), _field(line, ("text",), f"{path}:{number}")


def _lmms_eval(path: Path) -> Iterable[tuple[str, str]]:
    for number, line in _json_lines(path):
        where, doc = f"{path}:{number}", line.get("doc") or {}
        key = next((doc[k] for k in ("question_id", "id", "index") if k in doc), line.get("doc_id"))
        said: Any = line.get("filtered_resps") or line.get("resps")
        while isinstance(said, list) and said:
            said = said[0]
        if key is None or not isinstance(said, str):
            raise ValueError(f"{where}: seen no doc_id or no filtered_resps, expected a sample of lmms-eval")
        yield str(key), said


def _vlmevalkit(path: Path) -> Iterable[tuple[str, str]]:
    for number, row in enumerate(_rows(path), 2):
        yield _field(row, ("index",), f"{path}:{number}"), _field(row, ("prediction",), f"{path}:{number}")


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in (".tsv", ".csv", ".json"):
        raise ValueError(f"{path}: seen {path.suffix or 'no suffix'}, expected tsv, csv or json")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            if path.suffix == ".json":
                return [dict(row) for row in json.load(file)]
            return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: seen no rows ({error}), expected tsv, csv or json (is the file cut off?)") from None


def _json_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, dict(json.loads(line))
            except (ValueError, TypeError):
                cut = " (is the file cut off?)" if not line.endswith("\n") else ""
                raise ValueError(f"{path}:{number}: seen {line.strip()[:60]!r}, expected a JSON object{cut}") from None


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise ValueError(f"{where}: seen no {names[0]!r}, expected it")


def _names(sample: Sample) -> list[str]:
    """What an answer may call a question: of MMBench, whose rotations share `question_id`, the index instead."""
    meta = sample.meta or {}
    name = meta.get("index", meta.get("question_id"))
    return [sample.key, sample.id, *([] if name is None else [str(name)])]


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
