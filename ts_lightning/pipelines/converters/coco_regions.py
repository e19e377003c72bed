"""COCO boxes, annotated or detected, as region classification questions (ChatSpot 4.2: COCO-1000)."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters import coco_file
from ts_lightning.pipelines.converters.coco_file import as_id, padded
from ts_lightning.pipelines.converters.files import listed, load_json
from ts_lightning.pipelines.converters.pointing import category_question, check_kind
from ts_lightning.pipelines.converters.source import EXCLUDED, Dropped, Pictures, from_xywh, whole


def subset(annotations: str | Path, number: int, seed: int = 0, pictures: Pictures | None = None) -> list[coco_file.Id]:
    """Ids of `number` images of an annotation file (all, where it has fewer), drawn by `seed`, ascending.

    Those that `pictures` excludes are counted there and not drawn.
    """
    file, pictures, ids = Path(annotations), pictures or Pictures(), []
    for photo in coco_file.photos(file, coco_file.load(file), Dropped()):
        if pictures.is_excluded(name := str(photo.get("file_name"))):
            pictures.dropped.note(EXCLUDED, name)
        else:
            ids.append(photo["id"])
    return sorted(Random(seed).sample(ids, min(number, len(ids))), key=coco_file.order)


def read(
    pictures: Pictures,
    annotations: str | Path,
    detections: str | Path | None = None,
    image_ids: list[coco_file.Id] | None = None,
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
    file, dropped = Path(annotations), pictures.dropped
    known = coco_file.instances(file, coco_file.load(file), dropped)
    objects = known.objects if detections is None else _results(detections, dropped)
    chosen = None if image_ids is None else set(image_ids)
    pictures.naming(photo.get("file_name") for photo in known.photos)
    for photo in known.photos:
        number = photo["id"]
        if chosen is not None and number not in chosen:
            continue
        with dropped.row(f"{file.name} image {number}"):
            picture = pictures.get(photo["file_name"], coco_file.size(photo))
            if picture is None:
                continue
            for place, one in enumerate(objects.get(number, [])):
                if one.get("iscrowd"):
                    dropped.note("crowds (no question)", f"photo {number} object {place}", stops=False)
                    continue
                size = (picture[0].width, picture[0].height)
                box = dropped.box(from_xywh(one["bbox"]), size, f"photo {number} object {place}")
                if box is None:
                    continue
                name = known.names[one["category_id"]] if detections is None else None
                meta = {
                    "image_id": number,
                    "bbox": one["bbox"],
                    "score": float(one.get("score", 1.0)),
                    "category_id": one["category_id"] if name else None,
                }
                key = f"{padded(number)}-{place:04d}"
                sample = category_question("coco", key, picture, one, box, name, "coco_region", region, seed, meta)
                sample.id = f"coco_regions/{key}"
                yield sample


def _results(path: str | Path, dropped: Dropped) -> dict[coco_file.Id, list[dict[str, Any]]]:
    """A detector's boxes by photo."""
    file, what = Path(path), "a COCO results file"
    found: dict[coco_file.Id, list[dict[str, Any]]] = {}
    for one in whole(listed(load_json(file, what), file, ("image_id", "bbox", "score"), what), file, dropped):
        with dropped.row(f"{file.name} image {one['image_id']}"):
            found.setdefault(as_id(one["image_id"]), []).append(one)
    return found
