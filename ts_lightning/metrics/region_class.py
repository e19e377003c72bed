"""Region classification: accuracy, and COCO AP where each box carries its answer's class."""

from collections.abc import Mapping, Sequence
from typing import Any

from ts_lightning.metrics.caption_ap import coco_evaluation, known
from ts_lightning.metrics.class_mapping import ClassMapper

AP_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def classify(records: Sequence[Mapping[str, Any]], mapper: ClassMapper, category_ids: Sequence[int]) -> dict[str, Any]:
    """{"accuracy" (None without true categories), "results": COCO results} of rows with `text` and `meta`.

    `category_ids` are those of the mapper's names, in their order. A box whose answer is of no class, or None, is left
    out of the results and counts as wrong. The score of a result is the box's own: 1 for annotated boxes, the
    detector's for its.
    """
    classes = iter(mapper([record["text"] for record in records if record["text"] is not None]))
    results, right, asked = [], 0, 0
    for record in records:
        index, _ = (None, 0.0) if record["text"] is None else next(classes)
        meta = record["meta"]
        predicted = None if index is None else category_ids[index]
        if predicted is not None:
            results.append({k: meta[k] for k in ("image_id", "bbox", "score")} | {"category_id": predicted})
        if meta["category_id"] is not None:
            asked += 1
            right += predicted == meta["category_id"]
    return {"accuracy": right / asked if asked else None, "questions": len(records), "results": results}


def coco_ap(
    annotations: dict[str, Any], results: list[dict[str, Any]], image_ids: Sequence[int]
) -> tuple[dict[str, float], dict[str, float]]:
    """(COCO's AP figures, AP of each class that occurs) for `image_ids` alone.

    NaN where there is no such object (COCO's -1).
    """
    present = {a["category_id"] for a in annotations["annotations"] if a["image_id"] in set(image_ids)}
    named = {one["id"]: one["name"] for one in annotations["categories"] if one["id"] in present}
    evaluation = coco_evaluation(annotations, results, image_ids)
    precision_TRKAM = evaluation.eval["precision"]  # -1 where a class has no object
    per_class = {}
    for k, category in enumerate(evaluation.params.catIds):
        cell = precision_TRKAM[:, :, k, 0, -1]
        if category in named and (cell > -1).any():
            per_class[named[category]] = float(cell[cell > -1].mean())
    figures = zip(AP_NAMES, evaluation.stats[: len(AP_NAMES)], strict=True)
    return {name: known(value) for name, value in figures}, per_class
