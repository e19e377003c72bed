"""Region classification from prediction records: accuracy, and COCO AP where each box carries its answer's class."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.metrics.class_mapping import ClassMapper, Embed

AP_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
SUBTASK = "region_class"


def score_region_class(
    records: Sequence[Mapping[str, Any]], annotations: str | Path, embed: Embed, threshold: float = -1.0
) -> dict[str, dict[str, Any]]:
    """{suite: {questions, accuracy, AP, ..., per_class: {name: AP}}} of the region classification records.

    `annotations` is the COCO file that the questions come from; its category names are the classes. AP counts the
    images that were asked about. ValueError for a file or records that don't belong together.
    """
    truth = _annotations(annotations)
    names = [one["name"] for one in truth["categories"]]
    mapper, ids = ClassMapper(names, embed, threshold=threshold), [one["id"] for one in truth["categories"]]
    suites: dict[str, list[Mapping[str, Any]]] = {}
    known = {one["id"] for one in truth["images"]}
    for record in records:
        if record.get("subtask") != SUBTASK:
            continue
        if (image := (record.get("meta") or {}).get("image_id")) not in known:
            raise ValueError(f"{annotations}: seen no image {image!r} of question {record['key']}, expected its file")
        suites.setdefault(record["suite"], []).append(record)
    if not suites:
        raise ValueError(f"predictions: seen no record of subtask {SUBTASK}, expected some")
    scores = {}
    for suite, group in suites.items():
        result = classify(group, mapper, ids)
        images = sorted({record["meta"]["image_id"] for record in group})
        ap, per_class = coco_ap(truth, result["results"], images)
        scores[suite] = {k: result[k] for k in ("questions", "accuracy")} | ap | {"per_class": per_class}
    return scores


def classify(records: Sequence[Mapping[str, Any]], mapper: ClassMapper, category_ids: Sequence[int]) -> dict[str, Any]:
    """{"accuracy" (None without true categories), "results": COCO results} of region classification records.

    `category_ids` are those of the mapper's names, in their order. A box whose answer is of no class is left out of the
    results and counts as wrong. The score of a result is the box's own: 1 for annotated boxes, the detector's for its.
    """
    classes = mapper([record["text"] for record in records])
    results, right, asked = [], 0, 0
    for record, (index, _) in zip(records, classes, strict=True):
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
    """(COCO's AP figures, AP of each class that occurs) for `image_ids` alone, by faster-coco-eval; 0 for no result."""
    from faster_coco_eval import COCO, COCOeval_faster

    present = {a["category_id"] for a in annotations["annotations"] if a["image_id"] in set(image_ids)}
    named = {one["id"]: one["name"] for one in annotations["categories"] if one["id"] in present}
    if not results:
        return dict.fromkeys(AP_NAMES, 0.0), dict.fromkeys(named.values(), 0.0)
    truth = COCO(annotations)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox")
    evaluation.params.imgIds = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision_TRKAM = evaluation.eval["precision"]  # -1 where a class has no object
    per_class = {}
    for k, category in enumerate(evaluation.params.catIds):
        cell = precision_TRKAM[:, :, k, 0, -1]
        if category in named and (cell > -1).any():
            per_class[named[category]] = float(cell[cell > -1].mean())
    return dict(zip(AP_NAMES, map(float, evaluation.stats[: len(AP_NAMES)]), strict=True)), per_class


def _annotations(path: str | Path) -> dict[str, Any]:
    try:
        read = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: seen no JSON ({error}), expected a COCO instances file") from None
    if not isinstance(read, dict) or {"images", "annotations", "categories"} - set(read):
        raise ValueError(f"{path}: seen no images, annotations and categories, expected a COCO instances file")
    return read
