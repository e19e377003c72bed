"""COCO boxes, annotated or detected, as region classification questions (ChatSpot 4.2: COCO-1000)."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import Sample, SampleImage
from ts_lightning.pipelines.converters.coco import _by_image, _load, _with
from ts_lightning.pipelines.converters.pointing import category_question, check_kind
from ts_lightning.pipelines.converters.source import from_xywh, to_box


def subset(annotations: str | Path, number: int, seed: int = 0) -> list[int]:
    """Ids of `number` images of an annotation file (all, where it has fewer), drawn by `seed`, ascending."""
    ids = sorted(photo["id"] for photo in _with(annotations, _load(annotations), "images", ("id",)))
    return sorted(Random(seed).sample(ids, min(number, len(ids))))


def read(
    images: str | Path,
    annotations: str | Path,
    detections: str | Path | None = None,
    image_ids: list[int] | None = None,
    dropped: Counter[str] | None = None,
    region: str = "box",
    seed: int = 0,
) -> Iterator[Sample]:
    """One question for each box of the photos `image_ids` (None: all), crowds left out.

    `region` points at it with a "click", a "box", a "polygon" (the annotated outline, or one drawn around the box) or
    "mixed", one of them; drawn from (`seed`, sample) alone.

    Without `detections` the boxes are the annotated ones, the category is the true answer and the score is 1. With a
    COCO results file the boxes and scores are a detector's, and nothing is known to be true. `meta` holds what COCO's
    evaluation needs: {image_id, bbox, score, category_id (None for a detection)}.
    """
    check_kind(region)
    dropped = Counter() if dropped is None else dropped
    instances = _load(annotations)
    names = {one["id"]: one["name"] for one in _with(annotations, instances, "categories", ("id", "name"))}
    boxes = _with(annotations, instances, "annotations", ("image_id", "category_id", "bbox"))
    if detections is not None:
        boxes = _results(detections)
    grouped, chosen = _by_image(boxes), None if image_ids is None else set(image_ids)
    for photo in sorted(_with(annotations, instances, "images", ("id", "file_name")), key=lambda photo: photo["id"]):
        if chosen is not None and photo["id"] not in chosen:
            continue
        path = Path(images) / photo["file_name"]
        if not path.is_file():
            dropped["photos that are not in the folder"] += 1
            continue
        data = path.read_bytes()
        image = SampleImage(path.name, *inspect_image(data)[1:])
        for number, one in enumerate(grouped.get(photo["id"], [])):
            box = None if one.get("iscrowd") else to_box(from_xywh(one["bbox"]), (image.width, image.height))
            if box is None:
                dropped["crowds and boxes that are no box inside the photo"] += 1
                continue
            name = names[one["category_id"]] if detections is None else None
            meta = {
                "image_id": photo["id"],
                "bbox": one["bbox"],
                "score": float(one.get("score", 1.0)),
                "category_id": one["category_id"] if name else None,
            }
            key = f"{photo['id']:012d}-{number:04d}"
            sample = category_question("coco", key, (image, data), one, box, name, "coco_region", region, seed, meta)
            sample.id = f"coco_regions/{key}"
            yield sample


def _results(path: str | Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: seen no JSON ({error}), expected a COCO results file") from None
    if not isinstance(found, list) or any({"image_id", "bbox", "score"} - set(one) for one in found):
        raise ValueError(f"{path}: seen no list of image_id, bbox and score, expected a COCO results file")
    return found
