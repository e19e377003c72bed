"""Protocols whose answer is one box: localization, REC, phrase grounding, MIG-Bench."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from ts_lightning.metrics import box_iou, box_tensor
from ts_lightning.metrics.box_scores import phrase_recall, rec_figures
from ts_lightning.metrics.mean_iou import LARGE_AREA_PX, MEDIUM_AREA_PX
from ts_lightning.metrics.protocols.readings import Record, frame_warning, oracle_iou

Figures = dict[str, Any]
SPONTANEOUS = ("static_difference", "robust_difference", "common_object")
TASK_NAMES = {"diff": "static_difference", "view_diff": "robust_difference"}
_IMAGE_ID = re.compile(r"<bbox_id>\[(\d{1,3})-", re.ASCII)
_IMAGE_NUMBER = re.compile(
    r"\bimage[\s#-]{0,2}(\d{1,3})\b|\b(\d{1,3})(?:st|nd|rd|th) image\b", re.ASCII | re.IGNORECASE
)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_IMAGE_WORD = re.compile(rf"\b({'|'.join(_ORDINALS)}) image\b", re.IGNORECASE)


def iou_values(records: Sequence[Record], strict: bool = False) -> list[float]:
    """IoU of each question's box with its truth; `strict` counts boxes in the notation's exact form only."""
    boxes = [r["box"] if not strict or r.get("canonical", True) else None for r in records]
    true = box_tensor([r["truth"]["box"] for r in records])
    return box_iou(box_tensor(boxes), true).tolist() if records else []


def score_boxes(records: Sequence[Record]) -> Figures:
    """REC figures, the strict, lenient and oracle columns of Acc@0.5, parse failures, and a warning about frames."""
    pred, true = box_tensor([r["box"] for r in records]), box_tensor([r["truth"]["box"] for r in records])
    strict = _acc(iou_values(records, strict=True))
    return {
        **rec_figures(pred, true),
        "acc50_strict": strict,
        "acc50_lenient": _acc(iou_values(records)),
        "acc50_oracle": _acc([oracle_iou(r) for r in records]),
        "unparsed": _mean([r["box"] is None for r in records]),
        "unparsed_strict": _mean([r["box"] is None or not r.get("canonical", True) for r in records]),
        "several": _mean([r.get("parse_status") == "several" for r in records]),
        "ceiling_miou": _ceiling(records),
        "warning": frame_warning(records, strict),
    }


def score_localization(records: Sequence[Record]) -> Figures:
    """PIN's protocol: `score_boxes`, and mIoU of small, medium and large objects (original pixels)."""
    values = torch.tensor(iou_values(records), dtype=torch.float64)
    area = torch.tensor([_area(r) for r in records], dtype=torch.float64)
    sizes = {
        "small": area < MEDIUM_AREA_PX,
        "medium": (area >= MEDIUM_AREA_PX) & (area <= LARGE_AREA_PX),
        "large": area > LARGE_AREA_PX,
    }
    return score_boxes(records) | {f"miou_{k}": values[v].mean().item() for k, v in sizes.items()}


def score_phrases(records: Sequence[Record]) -> Figures:
    """Flickr30k Entities R@1, against the box around all of a phrase's boxes and against any of them."""
    pred = [box_tensor([] if r["box"] is None else [r["box"]]) for r in records]
    true = [box_tensor(r["truth"].get("boxes") or [r["truth"]["box"]]) for r in records]
    figures = {"recall1_merged": phrase_recall(pred, true, True), "recall1_any": phrase_recall(pred, true, False)}
    return figures | {"unparsed": _mean([r["box"] is None for r in records]), "ceiling_miou": _ceiling(records)}


def mig_task(record: Record) -> str:
    """The task of a MIG-Bench question under its name in the papers."""
    return TASK_NAMES.get(record.get("subtask") or "") or str(record.get("subtask"))


def score_mig(records: Sequence[Record]) -> Figures:
    """MIG-Bench: each task's Acc@0.5, the unweighted mean of the tasks, and of the two groups; images where known.

    `acc50_yscaled` multiplies y1 by 1.05 and y2 by 1.10 (at most 0.999) first, as some official scripts do: it is no
    score of the answer, and is here to compare with published numbers.
    """
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(mig_task(record), []).append(record)
    by_task = {}
    for task, group in tasks.items():
        iou = torch.tensor(iou_values(group), dtype=torch.float64)
        scaled = [r if r["box"] is None else {**r, "box": y_scaled(r["box"])} for r in group]
        by_task[task] = {
            "questions": len(group),
            **{f"acc{round(100 * t)}": (iou >= t).double().mean().item() for t in (0.3, 0.5, 0.7)},
            "acc50_above": (iou > 0.5).double().mean().item(),
            "acc50_yscaled": _acc(iou_values(scaled)),
            "miou": iou.mean().item(),
        }
    names = ("acc30", "acc50", "acc70", "acc50_above", "acc50_yscaled", "miou")
    mean = {name: _mean([row[name] for row in by_task.values()]) for name in names}
    groups = {
        "spontaneous": _mean([row["acc50"] for task, row in by_task.items() if task in SPONTANEOUS]),
        "referential": _mean([row["acc50"] for task, row in by_task.items() if task not in SPONTANEOUS]),
    }
    whole = {"unparsed": _mean([r["box"] is None for r in records]), "ceiling_miou": _ceiling(records)}
    return {**mean, **groups, **image_figures(records), **whole, "by_task": by_task}


def image_figures(records: Sequence[Record]) -> Figures:
    """How often the stated image is the true one, over the questions whose true image is known; 0-based in records."""
    known = [r for r in records if r["truth"].get("image") is not None]
    stated = [predicted_image(r) for r in known]
    return {
        "image_accuracy": _mean([s == r["truth"]["image"] for s, r in zip(stated, known, strict=True)]),
        "image_none_stated": sum(s is None for s in stated),
        "image_known": len(known),
    }


def predicted_image(record: Record) -> int | None:
    """The 0-based image that an answer names: the record's own field, `bbox_id`, "Image-3", or "the third image"."""
    if record.get("image") is not None:
        return int(record["image"])
    text = record["text"]
    if match := _IMAGE_ID.search(text) or _IMAGE_NUMBER.search(text):
        return int(next(group for group in match.groups() if group)) - 1
    if match := _IMAGE_WORD.search(text):
        return _ORDINALS.index(match[1].lower())
    return None


def y_scaled(box: Sequence[float]) -> list[float]:
    """A box after the linear scaling on the y axis that some official MIG-Bench scripts apply."""
    x1, y1, x2, y2 = box
    return [x1, min(0.999, 1.05 * y1), x2, min(0.999, 1.10 * y2)]


def _area(record: Record) -> float:
    truth = record["truth"]
    if truth.get("area_px") is not None:
        return float(truth["area_px"])
    x1, y1, x2, y2 = truth["box"]
    width, height = record["image_size"]
    return (x2 - x1) * width * (y2 - y1) * height


def _ceiling(records: Sequence[Record]) -> float:
    return _mean([c for r in records if (c := r["truth"].get("ceiling")) is not None])


def _acc(iou: Sequence[float]) -> float:
    return _mean([value >= 0.5 for value in iou])


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / len(values) if values else float("nan")
