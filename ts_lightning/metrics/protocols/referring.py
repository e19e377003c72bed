"""Hard sets of referring expressions: Ref-L4, GroundingME (one box or none), HumanRef (several boxes or none)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, group_by, mean
from ts_lightning.metrics.protocols.boxes import BOX_RULE, REC, overlap
from ts_lightning.metrics.readings.boxes import groundingme_numbers
from ts_lightning.metrics.record import Record

STEPS = tuple(0.5 + 0.05 * i for i in range(10))  # IoU 0.5 to 0.95, as the official scripts compute them
SMALL_PX, LARGE_PX = 128, 256


class RefL4(REC):
    """Ref-L4: hits above the threshold; their mean over 0.5 to 0.95; by size; the mean over the classes' means."""

    name = "ref_l4"
    main = "acc50_above"
    readings = ("lenient", "strict")
    convention = BOX_RULE | {
        "threshold": "IoU > 0.5 (macc: 0.5 to 0.95 by 0.05)",
        "sizes": "the root of the true box's area: small below 128, large above 256 original pixels",
        "classes": "Objects365's, COCO's counted as theirs; the unweighted mean over the classes",
    }

    def row(self, record: Record) -> Row:
        row = super().row(record)
        kind = self.expect(record, record.meta.get("class"), "meta.class")
        return row | {"value": float(row[self._iou] > 0.5), "class": kind, "side": math.sqrt(record.area_px)}

    def figures(self, rows: Sequence[Row]) -> Figures:
        figures = super().figures(rows)
        sizes: dict[str, list[Row]] = {"small": [], "medium": [], "large": []}
        for row in rows:
            size = "small" if row["side"] < SMALL_PX else "medium" if row["side"] <= LARGE_PX else "large"
            sizes[size].append(row)
        for name, group in sizes.items():
            figures |= {f"acc50_{name}": self._above(group, 0.5), f"macc_{name}": self._macc(group)}
        classes = group_by(rows, "class").values()
        return figures | {
            "acc75_above": self._above(rows, 0.75),
            "acc90_above": self._above(rows, 0.9),
            "macc": self._macc(rows),
            "acc50_classes": mean([self._above(group, 0.5) for group in classes]),
            "macc_classes": mean([self._macc(group) for group in classes]),
        }

    def _above(self, rows: Sequence[Row], threshold: float) -> float:
        return mean([row[self._iou] > threshold for row in rows])

    def _macc(self, rows: Sequence[Row]) -> float:
        return mean([self._above(rows, i / 100) for i in range(50, 100, 5)])


class GroundingME(Protocol):
    """GroundingME: one box, or none where nothing fits: an answer without a box is the rejection."""

    name = "groundingme"
    main = "acc50"
    readings = ("lenient", "official")
    convention = BOX_RULE | {
        "unparsed": "an answer without a box rejects: right in Rejection, else wrong",
        "official": "bbox_2d of the JSON, else the last four numbers; pixels, shares or 999ths, whichever fits better",
        "prompt": "ours, not the official one",
    }
    unanswered: ClassVar[Row] = {"value": 0.0, "iou": 0.0}

    def takes(self, record: Record) -> bool:
        return record.task != UNDERSTANDING and record.meta.get("subtask_l1") is not None

    def row(self, record: Record) -> Row:
        true = record.truth.box
        value = _official_iou(record) if self.reading == "official" else _or_none(record.answer.box, true)
        names = {name: str(record.meta.get(name)) for name in ("subtask_l1", "subtask_l2")}
        return names | {"value": float(value >= 0.5), "iou": value, "no_box": record.answer.box is None}

    def figures(self, rows: Sequence[Row]) -> Figures:
        parts = group_by(rows, "subtask_l1")
        there = [row for row in rows if row["subtask_l1"] != "Rejection"]
        finer = {name: mean([row["value"] for row in group]) for name, group in group_by(rows, "subtask_l2").items()}
        return {
            "acc50": mean([row["value"] for row in rows]),
            "acc75": mean([row["iou"] >= 0.75 for row in rows]),
            "acc90": mean([row["iou"] >= 0.9 for row in rows]),
            "miou": mean([row["iou"] for row in rows]),
            "acc50_there": mean([row["value"] for row in there]),
            "rejected": mean([row["value"] for row in parts.get("Rejection", [])]),
            "rejected_wrongly": mean([row["no_box"] for row in there]),
            "by_subtask_l2": finer,
        }


def _or_none(box: Box | None, true: Box | None) -> float:
    return float(box is None) if true is None else overlap(box, true)


def _official_iou(record: Record) -> float:
    """The better IoU of the answer's numbers as pixels of the picture and as shares or 999ths of it."""
    numbers = groundingme_numbers(record.text)
    if record.truth.box is None or not any(numbers):
        return float(record.truth.box is None and not any(numbers))
    width, height = record.size
    shares = (1.0, 1.0) if all(n <= 1 for n in numbers) else (999.0, 999.0)
    read = [[n / side for n, side in zip(numbers, sides * 2, strict=True)] for sides in ((width, height), shares)]
    return max(signed_iou(one, record.truth.box) for one in read)


def signed_iou(box: Sequence[float], true: Box) -> float:
    """IoU of corners as written: those that are reversed have a negative area where both sides don't."""
    width = max(0.0, min(box[2], true[2]) - max(box[0], true[0]))
    height = max(0.0, min(box[3], true[3]) - max(box[1], true[1]))
    union = (box[2] - box[0]) * (box[3] - box[1]) + (true[2] - true[0]) * (true[3] - true[1]) - width * height
    return width * height / union if union > 0 else 0.0


class HumanRef(Protocol):
    """HumanRef: recall, precision and DensityF1 over IoU 0.5 to 0.95 of all boxes of an answer; rejection apart."""

    name = "humanref"
    main = "density_f1"
    convention = {
        "answer": "all boxes of the answer; each true box takes the best unused one from the threshold on",
        "mean": "over the questions that mean somebody; density_f1 = F1 x min(1, true boxes / boxes of the answer)",
        "rejected": "questions that mean nobody, answered without a box",
    }
    unanswered: ClassVar[Row] = {"rejected": False}

    def takes(self, record: Record) -> bool:
        return record.task != UNDERSTANDING and record.meta.get("domain") is not None

    def row(self, record: Record) -> Row:
        said, true = [thing.box for thing in record.answer.answered], record.truth.boxes
        if record.meta["domain"] == "rejection":
            return {"rejected": not said}
        people = self.expect(record, record.meta.get("people"), "meta.people")
        each = [matched_shares(said, true, threshold) for threshold in STEPS]
        density = [_density_f1(*one, len(said), len(true), people) for one in each]
        recall, precision = zip(*each, strict=True)
        return {
            "value": mean(density),
            "at_50": [recall[0], precision[0], density[0]],
            "recall": mean(recall),
            "precision": mean(precision),
        }

    def figures(self, rows: Sequence[Row]) -> Figures:
        some = [row for row in rows if "value" in row]
        figures: dict[str, Any] = {
            "density_f1": mean([row["value"] for row in some]),
            "recall": mean([row["recall"] for row in some]),
            "precision": mean([row["precision"] for row in some]),
        }
        for i, name in enumerate(("recall50", "precision50", "density_f1_50")):
            figures[name] = mean([row["at_50"][i] for row in some])
        return figures | {"rejected": mean([row["rejected"] for row in rows if "rejected" in row])}


def matched_shares(said: Sequence[Box], true: Sequence[Box], threshold: float) -> tuple[float, float]:
    """(recall, precision): each true box in turn takes the best box that none took, from `threshold` on."""
    free = list(said)
    for box in true:
        best = max(free, key=lambda one: overlap(one, box), default=None)
        if best is not None and overlap(best, box) >= threshold:
            free.remove(best)
    hits = len(said) - len(free)
    return hits / len(true), hits / len(said) if said else 0.0


def _density_f1(recall: float, precision: float, said: int, true: int, people: int) -> float:
    if recall + precision == 0 or people == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall) * min(1.0, true / said)
