"""MIG-Bench (Migician; MIRG-RL, Tables 1 to 3): ten tasks over several pictures, one box each."""

from collections.abc import Sequence
from typing import Any

from ts_lightning.grounding.boxes import Box
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, group_by, mean
from ts_lightning.metrics.protocols.boxes import BOX_RULE, box_row, overlap
from ts_lightning.metrics.protocols.frames import frame_warning
from ts_lightning.metrics.readings.boxes import migician_box
from ts_lightning.metrics.record import Record

SPONTANEOUS = ("static_difference", "robust_difference", "common_object")
TASK_NAMES = {"diff": "static_difference", "view_diff": "robust_difference"}
COLUMNS = {"lenient": "iou", "strict": "iou_strict", "official": "iou_official", "oracle": "iou_oracle"}


class MIG(Protocol):
    """Each task's Acc@0.5, their unweighted mean, the mean of the two groups of tasks, and the stated picture.

    Four columns read the same answers: strict (the notation's exact form), lenient, official (Migician's six notations)
    and oracle (any numbers in any frame: no score). `acc50_yscaled` multiplies y1 by 1.05 and y2 by 1.10 first (at most
    0.999), as some official scripts do for some models.
    """

    name = "mig"
    main = "acc50"
    readings = ("lenient", "strict", "official")
    convention = BOX_RULE | {"mean": "unweighted over the tasks"}

    def takes(self, record: Record) -> bool:
        return record.truth.box is not None

    def row(self, record: Record) -> Row:
        true, box = record.truth.box, record.answer.box
        task = self.expect(record, record.subtask, "subtask")
        row = box_row(record) | {"iou_official": overlap(migician_box(record.text), true)}
        chosen = row[COLUMNS[self.reading]]
        return row | {
            "stratum": TASK_NAMES.get(task, task),
            "value": float(chosen >= 0.5),
            "iou_yscaled": overlap(None if box is None else y_scaled(box), true),
            "image": record.answer.image,
            "true_image": record.truth.image,
        }

    def figures(self, rows: Sequence[Row]) -> Figures:
        column = COLUMNS[self.reading]
        by_task = {task: task_figures(group, column) for task, group in group_by(rows, "stratum").items()}
        names = [name for name in next(iter(by_task.values())) if name != "questions"]
        known = [row for row in rows if row["true_image"] is not None]
        figures: dict[str, Any] = {name: mean([one[name] for one in by_task.values()]) for name in names}
        spontaneous = [one["acc50"] for task, one in by_task.items() if task in SPONTANEOUS]
        referential = [one["acc50"] for task, one in by_task.items() if task not in SPONTANEOUS]
        return figures | {
            "spontaneous": mean(spontaneous),
            "referential": mean(referential),
            "image_accuracy": mean([row["image"] == row["true_image"] for row in known]),
            "image_none_stated": sum(row["image"] is None for row in known),
            "image_known": len(known),
            "unparsed": mean([row["status"] == "unparsed" for row in rows]),
            "unparsed_strict": mean([row["unparsed_strict"] for row in rows]),
            "several": mean([row["status"] == "several" for row in rows]),
            "ceiling_miou": mean([row["ceiling"] for row in rows]),
            "warning": frame_warning(rows, mean([row["iou"] >= 0.5 for row in rows])),
            "by_task": by_task,
        }


def task_figures(rows: Sequence[Row], column: str) -> Figures:
    """The figures of one task, its IoU read by `column`; every column's Acc@0.5 beside."""
    values = [row[column] for row in rows]
    return {
        "questions": len(rows),
        **{f"acc{round(100 * t)}": mean([v >= t for v in values]) for t in (0.3, 0.5, 0.7)},
        "acc50_above": mean([v > 0.5 for v in values]),
        **{f"acc50_{name}": mean([row[iou] >= 0.5 for row in rows]) for name, iou in COLUMNS.items()},
        "acc50_yscaled": mean([row["iou_yscaled"] >= 0.5 for row in rows]),
        "miou": mean(values),
    }


def y_scaled(box: Sequence[float]) -> Box:
    """A box after the linear scaling on the y axis that some official MIG-Bench scripts apply."""
    x1, y1, x2, y2 = box
    return (x1, min(0.999, 1.05 * y1), x2, min(0.999, 1.10 * y2))
