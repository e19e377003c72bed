"""Protocols whose answer is one box: REC, localization, phrase grounding."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.metrics.mean_iou import LARGE_AREA_PX, MEDIUM_AREA_PX
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, mean
from ts_lightning.metrics.protocols.frames import declared_space, frame_warning, oracle_iou, readings_right
from ts_lightning.metrics.readings.boxes import (
    lmms_eval_box,
    lmms_eval_centre,
    vlm_r1_box,
    vlm_r1_iou,
    vlmevalkit_box,
)
from ts_lightning.metrics.record import Record

THRESHOLDS = tuple(i / 10 for i in range(1, 10))
BOX_RULE = {"answer": "the first box of the answer", "threshold": "IoU >= 0.5", "unparsed": "counts as wrong"}


def overlap(box: Box | None, true: Box | None) -> float:
    """IoU, 0 for a missing box."""
    return 0.0 if box is None or true is None else iou(box, true)


def box_row(record: Record) -> Row:
    """What every question about one box adds: IoU as read leniently, strictly and by an oracle, and what was read."""
    answer, true = record.answer, record.truth.box
    assert true is not None
    box, strict = answer.box, answer.strict_box
    centre = box is not None and all(
        low <= (a + b) / 2 <= high for a, b, low, high in zip(box[:2], box[2:], true[:2], true[2:], strict=True)
    )
    return {
        "iou": overlap(box, true),
        "iou_strict": overlap(strict, true),
        "iou_oracle": oracle_iou(record),
        "centre": centre,
        "status": answer.status,
        "unparsed_strict": strict is None,
        "area": record.area_px,
        "ceiling": record.ceiling,
        "readings": readings_right(record),
        "declared": declared_space(record),
    }


def box_figures(rows: Sequence[Row], iou: str = "iou") -> Figures:
    """Acc at IoU >= 0.1 ... 0.9 and > 0.5, mIoU and centre accuracy of the IoU named `iou`, and what was not read."""
    values = [row[iou] for row in rows]
    lenient = mean([row["iou"] >= 0.5 for row in rows])
    return {
        **{f"acc{round(t * 100)}": mean([v >= t for v in values]) for t in THRESHOLDS},
        "acc50_above": mean([v > 0.5 for v in values]),
        "miou": mean(values),
        "centre": mean([row["centre"] for row in rows]),
        "acc50_strict": mean([row["iou_strict"] >= 0.5 for row in rows]),
        "acc50_lenient": lenient,
        "acc50_oracle": mean([row["iou_oracle"] >= 0.5 for row in rows]),
        "unparsed": mean([row["status"] == "unparsed" for row in rows]),
        "unparsed_strict": mean([row["unparsed_strict"] for row in rows]),
        "several": mean([row["status"] == "several" for row in rows]),
        "ceiling_miou": mean([row["ceiling"] for row in rows]),
        "warning": frame_warning(rows, lenient),
    }


class Judged(NamedTuple):
    """What a benchmark's own scorer makes of an answer: its IoU, whether it is a hit, and centre accuracy."""

    iou: float
    right: bool
    centre: bool


def lmms_eval(record: Record) -> Judged:
    """lmms-eval: the first bracket in [0, 1] of the original picture, (0, 0, 0, 0) for none; a hit at IoU >= 0.5."""
    true, box = _true(record), lmms_eval_box(record.text)
    value = max(0.0, overlap(box, true))
    return Judged(value, value >= 0.5, lmms_eval_centre(box, true))


def vlmevalkit(record: Record) -> Judged:
    """VLMEvalKit: any four numbers, reversed corners turned round; a hit at IoU >= 0.5."""
    true, box = _true(record), vlmevalkit_box(record.text, record.size)
    value = overlap(box, true)
    return Judged(value, value >= 0.5, box is not None and lmms_eval_centre(box, true))


def vlm_r1(record: Record) -> Judged:
    """VLM-R1: the last bracket of the tagged answer, in pixels that the model was shown; a hit above 0.5."""
    shown = record.size if record.resized is None else record.resized[record.image]
    x1, y1, x2, y2 = _true(record)
    true = (x1 * shown[0], y1 * shown[1], x2 * shown[0], y2 * shown[1])
    box = vlm_r1_box(record.text)
    value = vlm_r1_iou(box, true)
    return Judged(value, value > 0.5, box is not None and lmms_eval_centre(box, true))


def _true(record: Record) -> Box:
    assert record.truth.box is not None
    return record.truth.box


class REC(Protocol):
    """Referring expression comprehension: one phrase, one box."""

    name = "rec"
    main = "acc50"
    readings: ClassVar[tuple[str, ...]] = ("lenient", "strict", "lmms_eval", "vlmevalkit", "vlm_r1")
    convention = BOX_RULE
    unanswered: ClassVar[Row] = {"centre_official": False}
    official: ClassVar[dict[str, Callable[[Record], Judged]]] = {
        "lmms_eval": lmms_eval,
        "vlmevalkit": vlmevalkit,
        "vlm_r1": vlm_r1,
    }

    def takes(self, record: Record) -> bool:
        return record.truth.box is not None

    def row(self, record: Record) -> Row:
        row = box_row(record)
        if self.reading in self.official:
            judged = self.official[self.reading](record)
            row |= {"iou_official": judged.iou, "right": judged.right, "centre_official": judged.centre}
        return row | {"value": float(row.get("right", row[self._iou] >= 0.5))}

    @property
    def _iou(self) -> str:
        return "iou_official" if self.reading in self.official else {"strict": "iou_strict"}.get(self.reading, "iou")

    def figures(self, rows: Sequence[Row]) -> Figures:
        figures = box_figures(rows, self._iou)
        if self.reading not in self.official:
            return figures
        right = mean([row["right"] for row in rows])
        centre = mean([row["centre_official"] for row in rows])
        return figures | {"acc50": right, "acc50_official": right, "centre": centre}


class Localization(REC):
    """PIN's protocol (TWIST & SCOUT, Table 1): mIoU, and of small, medium and large objects in original pixels."""

    name = "localization"
    main = "miou"
    convention = BOX_RULE | {
        "sizes": "medium 32^2-96^2, large above 96^2 original pixels; small objects count in the total"
    }

    def row(self, record: Record) -> Row:
        row = super().row(record)
        return row | {"value": row[self._iou]}

    def figures(self, rows: Sequence[Row]) -> Figures:
        sizes: dict[str, list[float]] = {"small": [], "medium": [], "large": []}
        for row in rows:
            area = row["area"]
            size = "small" if area < MEDIUM_AREA_PX else "medium" if area <= LARGE_AREA_PX else "large"
            sizes[size].append(row[self._iou])
        return super().figures(rows) | {f"miou_{size}": mean(values) for size, values in sizes.items()}


class Phrases(Protocol):
    """Flickr30k Entities R@1: the answer's box against the box around all of a phrase's, and against any of them."""

    name = "phrases"
    main = "recall1_merged"
    convention = BOX_RULE | {"truth": "the box around all boxes of the phrase; any of them in recall1_any"}

    def takes(self, record: Record) -> bool:
        return record.task != UNDERSTANDING and record.subtask == "phrase" and bool(record.truth.boxes)

    def row(self, record: Record) -> Row:
        true, box = record.truth.boxes, record.answer.box
        x1, y1, x2, y2 = zip(*true, strict=True)
        merged = overlap(box, (min(x1), min(y1), max(x2), max(y2))) >= 0.5
        return {
            "value": float(merged),
            "any": max(overlap(box, one) for one in true) >= 0.5,
            "unparsed": box is None,
            "ceiling": None if record.truth.box is None else record.ceiling,
        }

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "recall1_merged": mean([row["value"] for row in rows]),
            "recall1_any": mean([row["any"] for row in rows]),
            "unparsed": mean([row["unparsed"] for row in rows]),
            "ceiling_miou": mean([row["ceiling"] for row in rows if row["ceiling"] is not None]),
        }
