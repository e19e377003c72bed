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
from ts_lightning.evaluation.scoring import Record, read_predictions
from ts_lightning.grounding.codecs import Codec
from ts_lightning.training.validation import prediction_record

FORMATS = ("ours", "lmms-eval", "vlmevalkit")
_NAMED = 5  # so many keys stand in a message


def read_own(path: str | Path) -> list[Record]:
    """Prediction records with their truth; ValueError for a line that is none, a repeated question, a NaN box."""
    records = read_predictions(path)
    _unique([f"{r['suite']}:{r['key']}" for r in records], path)
    for record in records:
        for name, box in (("box", record.get("box")), ("truth.box", record["truth"].get("box"))):
            if box is not None and (len(box) != 4 or not all(math.isfinite(v) for v in box)):
                raise ValueError(f"{path}: {record['key']}: {name}: seen {box}, expected four finite numbers")
    return records


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
    """Answers by question from a result file of lmms-eval (samples, JSON lines) or VLMEvalKit (tsv, csv or json).

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
    if path.suffix == ".json":
        rows = json.loads(path.read_text())
    else:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    for number, row in enumerate(rows, 2):
        yield _field(row, ("index",), f"{path}:{number}"), _field(row, ("prediction",), f"{path}:{number}")


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
    question = (sample.meta or {}).get("question_id")
    return [sample.key, sample.id, *([] if question is None else [str(question)])]


def _unique(keys: Sequence[str], path: str | Path) -> None:
    seen: set[str] = set()
    if twice := sorted({key for key in keys if key in seen or seen.add(key)}):  # type: ignore[func-returns-value]
        raise ValueError(f"{path}: seen {_listed(twice)} more than once, expected one answer a question")


def _listed(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
