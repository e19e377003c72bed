"""Answers that name every object of a photo (ODinW-13), and of two pictures in groups (MC-Bench): COCO AP."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from scipy.optimize import linear_sum_assignment

from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.metrics.caption_ap import coco_figures
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, group_by, mean
from ts_lightning.metrics.record import Record

Item = dict[str, Any]
SHOWN = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR100")


class Detection(Protocol):
    """COCO AP over the classes that the question names; the mean of the sets' where there are several (ODinW-13).

    A box has the class whose name its label is, or ends the words before it; one without a class of its own has that
    of the box before it.
    """

    name = "detection"
    main = "AP"
    convention = {
        "rule": "COCO AP of each set, at most 100 boxes a photo; the unweighted mean over sets that have such objects",
        "box score": "1: answers have none; equal scores keep the order of the answer",
        "question": "one a photo, all classes of the set named in it",
    }

    def takes(self, record: Record) -> bool:
        return record.meta.get("classes") is not None

    def row(self, record: Record) -> Row:
        meta = {name: self.expect(record, record.meta.get(name), f"meta.{name}") for name in ("image_id", "objects")}
        said, unnamed = named_boxes(record, record.meta["classes"])
        return {"set": record.subtask, "size": list(record.size), "said": said, "unnamed": unnamed} | meta

    def figures(self, rows: Sequence[Row]) -> Figures:
        sets = {name: _set_figures(group) for name, group in group_by(rows, "set").items()}
        known = {name: [value for one in sets.values() if (value := one[name]) == value] for name in SHOWN}
        figures: dict[str, Any] = {name: mean(values) for name, values in known.items()}
        boxes = sum(len(row["said"]) + row["unnamed"] for row in rows)
        figures["no_class"] = sum(row["unnamed"] for row in rows) / boxes if boxes else 0.0
        return figures | {"sets": len(sets), "boxes": boxes}


def named_boxes(record: Record, classes: Sequence[str]) -> tuple[list[list[Any]], int]:
    """([class number, x, y, width, height in pixels] of every box that has a class, how many have none)."""
    numbers = {_plain(name): number for number, name in enumerate(classes)}
    by_length = sorted(numbers, key=len, reverse=True)
    found, unnamed, end, last = [], 0, 0, None
    for thing in record.answer.objects:
        between = _plain(record.text[end : thing.start]) if thing.start >= end else ""
        end = max(end, thing.end)
        if thing.phrase is not None:
            last = numbers.get(_plain(thing.phrase))
        elif between:
            last = next((numbers[name] for name in by_length if f" {between}".endswith(f" {name}")), None)
        if not thing.is_box:
            continue
        if last is None:
            unnamed += 1
            continue
        found.append([last, *_xywh(thing.box, record.size)])
    return found, unnamed


def _xywh(box: Box, size: Sequence[float]) -> list[float]:
    (x1, y1, x2, y2), (width, height) = box, size
    return [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w]+", " ", text.lower().replace("_", " ")).split())


def _set_figures(rows: Sequence[Row]) -> Figures:
    truth = [
        _annotation(row["image_id"], number, *box, area=area, iscrowd=crowd)
        for row in rows
        for number, *box, area, crowd in row["objects"]
    ]
    said = [_result(row["image_id"], number, box) for row in rows for number, *box in row["said"]]
    return coco_figures(_coco(truth, {row["image_id"]: row["size"] for row in rows}), said, _ids(rows))


def _ids(rows: Sequence[Row]) -> list[int]:
    return sorted({row["image_id"] for row in rows})


def _annotation(image: int, category: int, *xywh: float, area: float, iscrowd: int = 0) -> Item:
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "area": area, "iscrowd": iscrowd}


def _result(image: int, category: int, xywh: Sequence[float]) -> Item:
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "score": 1.0}


def _coco(annotations: Sequence[Item], sizes: Mapping[int, Sequence[int]]) -> Item:
    return {
        "images": [{"id": image, "width": size[0], "height": size[1]} for image, size in sizes.items()],
        "annotations": [one | {"id": number} for number, one in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": str(number)} for number in {one["category_id"] for one in annotations}],
    }


class MCBench(Protocol):
    """MC-Bench: AP50 over the groups of boxes, weighted by their boxes, and which pictures an answer finds things in.

    An answer in words has no groups: all of its boxes are one, and count as the true group that they fit best.
    """

    name = "mc_bench"
    main = "ap50"
    convention = {
        "ap50": "COCO AP at IoU 0.5 of each group number, the mean weighted by its true boxes; box score 1",
        "groups": "the boxes of an answer are one group, the true one with the highest mean IoU: in every pair, where "
        "the script that we read keeps it for the last pair of its loop alone",
        "pictures": "right where each picture has a box, or none, as in the truth; a box naming none is in the first",
    }
    unanswered: ClassVar[Row] = {"pictures": False}

    def takes(self, record: Record) -> bool:
        return record.meta.get("image_ids") is not None and record.meta.get("objects") is not None

    def row(self, record: Record) -> Row:
        said = []
        for thing in record.answer.answered:
            image = thing.image or 0
            said.append([image, *_xywh(thing.box, record.sizes[image])])
        true = record.meta["objects"]
        known = [[any(one[0] == image for one in part) for image in (0, 1)] for part in (said, true)]
        names = {"ids": record.meta["image_ids"], "sizes": [list(size) for size in record.sizes]}
        return names | {"said": said, "true": true, "pictures": known[0] == known[1], "negative": not true}

    def figures(self, rows: Sequence[Row]) -> Figures:
        groups = [best_group(row["said"], row["true"]) for row in rows]
        none = [row["pictures"] for row in rows if row["negative"]]
        return {
            "ap50": _weighted_ap50(rows, groups),
            "pictures": mean([row["pictures"] for row in rows]),
            "rejected": mean(none),
        }


def best_group(said: Sequence[Sequence[float]], true: Sequence[Sequence[float]]) -> int:
    """The true group whose boxes have the highest mean IoU with the answer's, matched one to one in each picture."""
    groups = sorted({int(one[1]) for one in true})
    if not said or not groups:
        return 1
    scores = []
    for group in groups:
        overlaps: list[float] = []
        for image in (0, 1):
            found = [_corners(one[1:]) for one in said if one[0] == image]
            wanted = [_corners(one[2:]) for one in true if one[0] == image and one[1] == group]
            ious = [[iou(a, b) for b in wanted] for a in found]
            if found and wanted:
                overlaps += [ious[i][j] for i, j in zip(*linear_sum_assignment(ious, maximize=True), strict=True)]
        scores.append(mean(overlaps) if overlaps else 0.0)
    return groups[scores.index(max(scores))]


def _corners(xywh: Sequence[float]) -> Box:
    x, y, w, h = xywh
    return x, y, x + w, y + h


def _weighted_ap50(rows: Sequence[Row], groups: Sequence[int]) -> float:
    truth = [
        _annotation(row["ids"][image], group, *box, area=box[2] * box[3])
        for row in rows
        for image, group, *box in row["true"]
    ]
    said = [
        _result(row["ids"][image], group, box)
        for row, group in zip(rows, groups, strict=True)
        for image, *box in row["said"]
    ]
    sizes = {number: size for row in rows for number, size in zip(row["ids"], row["sizes"], strict=True)}
    total = 0.0
    for group in {one["category_id"] for one in truth}:
        mine = [one for one in truth if one["category_id"] == group]
        answered = [one for one in said if one["category_id"] == group]
        total += len(mine) * coco_figures(_coco(mine, sizes), answered, sorted(sizes))["AP50"]
    return total / len(truth) if truth else float("nan")
