"""Scores of stored predictions: the JSON lines that `ts-lightning predict` writes, without a model."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.steps import final_answer
from ts_lightning.metrics import AnswerAccuracy, BoxAccuracy, ContainsAccuracy, MeanIoU, box_tensor

Record = Mapping[str, Any]
COLUMNS = ("count", "miou", "miou_medium", "miou_large", "acc50", "unparsed", "several", "accuracy", "contains")


def read_predictions(path: str | Path) -> list[Record]:
    """The records of a JSON-lines file; ValueError with file and line number for a line that is not one."""
    records: list[Record] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not {"suite", "key", "text", "truth"} <= record.keys():
                raise ValueError(f"{path}:{number}: seen {line.strip()[:60]!r}, expected a prediction record")
            records.append(record)
    return records


def score(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Scores by suite and by `suite/subtask`: the keys of `COLUMNS` that apply, shares in [0, 1].

    A question with a true box counts in the box scores (its `box` may be None: 0), every other one with accepted
    answers in `accuracy` or, tagged so, in `contains` (of a step-by-step answer the final words count). The size of an
    object is its `area_px` where the record has it, else that of its box.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        names = (
            [record["suite"], f"{record['suite']}/{record['subtask']}"] if record.get("subtask") else [record["suite"]]
        )
        for name in names:
            groups.setdefault(name, []).append(record)
    return {name: {"count": len(group), **_boxes(group), **_words(group)} for name, group in sorted(groups.items())}


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """`score`'s result as plain text, a line a suite; columns that nothing fills are left out."""
    used = [c for c in COLUMNS if any(not math.isnan(row.get(c, math.nan)) for row in scores.values())]
    wide = max([len(name) for name in scores] + [5]) + 2
    lines = [f"{'suite':<{wide}}" + "".join(f"{column:>13}" for column in used)]
    for name, row in scores.items():
        cells = ((column, row.get(column, math.nan)) for column in used)
        lines.append(f"{name:<{wide}}" + "".join(f"{_cell(column, value):>13}" for column, value in cells))
    return "\n".join(lines)


def _boxes(group: list[Record]) -> dict[str, float]:
    asked = [record for record in group if record["truth"].get("box") is not None]
    if not asked:
        return {}
    pred, true = box_tensor([r["box"] for r in asked]), box_tensor([r["truth"]["box"] for r in asked])
    miou, acc = MeanIoU(), BoxAccuracy()
    miou.update(pred, true, torch.ones(len(asked), 2), torch.tensor([_area(r["truth"]) for r in asked]).double())
    acc.update(pred, true)
    shares = {s: sum(r["parse_status"] == s for r in asked) / len(asked) for s in ("unparsed", "several")}
    values = {k: v.item() for k, v in {**miou.compute(), **acc.compute()}.items() if k != "count"}
    return values | shares


def _words(group: list[Record]) -> dict[str, float]:
    asked = [record for record in group if record["truth"].get("box") is None and record["truth"].get("answers")]
    if not asked:
        return {}
    texts = [
        r["text"] if r.get("task") == "understanding" else final_answer(r["text"], get_codec("scout")) for r in asked
    ]
    scores = {}
    for name, metric, contains in (("accuracy", AnswerAccuracy(), False), ("contains", ContainsAccuracy(), True)):
        chosen = [i for i, r in enumerate(asked) if ("contains" in r.get("tags", ())) == contains]
        if chosen:
            metric.update([texts[i] for i in chosen], [asked[i]["truth"]["answers"] for i in chosen])
            scores[name] = metric.compute()[name].item()
    return scores


def _area(truth: Record) -> float:
    if truth.get("area_px") is not None:
        return float(truth["area_px"])
    x1, y1, x2, y2 = truth["box_px"]
    return (x2 - x1) * (y2 - y1)


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if column == "count" else f"{value:.3f}"
