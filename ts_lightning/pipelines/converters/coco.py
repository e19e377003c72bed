"""COCO detection and caption files to samples: one record for each localization question or captioned photo."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.prompts import templates


def read(
    images: str | Path,
    annotations: str | Path,
    captions: str | Path | None = None,
    max_objects: int | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Sample]:
    """Samples of the photos in the folder `images`, by photo and category id.

    A category that occurs once in a photo (no crowd of it either) makes a localization question. With `captions` every
    captioned photo makes an understanding question too: its first caption is the answer, all are `answers`.
    `max_objects` keeps photos with at most that many annotated objects and no crowd (the papers' subset has 3).
    `dropped` counts what was left out, by reason. Raises ValueError for files that are not COCO's, or no photo at all.
    """
    dropped = Counter() if dropped is None else dropped
    instances = _load(annotations)
    names = {one["id"]: one["name"] for one in _with(annotations, instances, "categories", ("id", "name"))}
    objects = _by_image(_with(annotations, instances, "annotations", ("image_id", "category_id", "bbox")))
    texts: dict[int, list[dict[str, Any]]] = {}
    if captions is not None:
        texts = _by_image(_with(captions, _load(captions), "annotations", ("image_id", "caption")))
    folder, found = Path(images), 0
    for photo in sorted(_with(annotations, instances, "images", ("id", "file_name")), key=lambda photo: photo["id"]):
        here = objects.get(photo["id"], [])
        crowd = any(one.get("iscrowd") for one in here)
        if max_objects is not None and (len(here) > max_objects or crowd):
            dropped[f"photos with more than {max_objects} objects or a crowd"] += 1
            continue
        path = folder / photo["file_name"]
        if not path.is_file():
            dropped["photos that are not in the folder"] += 1
            continue
        found += 1
        data = path.read_bytes()
        try:
            _, width, height = inspect_image(data)
        except ValueError:
            dropped["photos that can't be decoded"] += 1
            continue
        if (photo.get("width", width), photo.get("height", height)) != (width, height):
            dropped["photos of another displayed size than annotated"] += 1
            continue
        image = SampleImage(Path(photo["file_name"]).name, width, height)
        yield from _questions(photo["id"], image, data, here, names, dropped)
        yield from _captions(photo["id"], image, data, texts.get(photo["id"], []), dropped)
    if not found:
        raise ValueError(f"{folder}: seen none of the photos of {annotations}, expected *.jpg files that it names")


def _questions(
    photo: int,
    image: SampleImage,
    data: bytes,
    objects: list[dict[str, Any]],
    names: dict[int, str],
    dropped: Counter[str],
) -> Iterator[Sample]:
    """A localization sample for every category with one object and no crowd in this photo."""
    crowds = {one["category_id"] for one in objects if one.get("iscrowd")}
    count = Counter(one["category_id"] for one in objects if not one.get("iscrowd"))
    dropped["categories that occur more than once in a photo"] += sum(
        n > 1 for c, n in count.items() if c not in crowds
    )
    dropped["categories with a crowd in a photo"] += len(crowds)
    for one in sorted(objects, key=lambda one: one["category_id"]):
        category = one["category_id"]
        if category in crowds or count[category] > 1:
            continue
        if category not in names:
            raise ValueError(f"photo {photo}: seen the category id {category}, expected one of the file's categories")
        box = _box(one["bbox"], image)
        if box is None:
            dropped["boxes that are no box inside the photo"] += 1
            continue
        key = f"{photo:012d}-{category:02d}"
        prompts = templates("localization")
        prompt = prompts[crc32(key.encode()) % len(prompts)].replace("{phrase}", names[category])
        area = one.get("area")
        yield Sample(
            id=f"coco/{photo}/{category}",
            key=key,
            source="coco",
            task="grounding",
            subtask="localization",
            images=[image],
            turns=[Turn("user", f"{IMAGE_MARK}\n{prompt}"), Turn("assistant", "{region:0}")],
            regions=[
                SampleRegion(
                    phrase=names[category],
                    category=names[category],
                    area_px=float(one["bbox"][2] * one["bbox"][3] if area is None else area),
                    box=box,
                )
            ],
            answer=Answer(regions=[0]),
            meta={"image_id": photo, "annotation_id": one.get("id")},
            image_bytes=[data],
        )


def _captions(
    photo: int, image: SampleImage, data: bytes, captions: list[dict[str, Any]], dropped: Counter[str]
) -> Iterator[Sample]:
    texts = []
    for one in captions:
        text = " ".join(one["caption"].split())
        if not text or IMAGE_MARK in text or REGION_MARK.search(text):
            dropped["captions that are empty or hold a placeholder"] += 1
            continue
        texts.append(text)
    if not texts:
        return
    key = f"{photo:012d}-caption"
    prompts = templates("caption")
    yield Sample(
        id=f"coco/{photo}/caption",
        key=key,
        source="coco",
        subtask="caption",
        images=[image],
        turns=[
            Turn("user", f"{IMAGE_MARK}\n{prompts[crc32(key.encode()) % len(prompts)]}"),
            Turn("assistant", texts[0]),
        ],
        answer=Answer(text=texts[0]),
        answers=texts,
        meta={"image_id": photo, "annotation_id": None},
        image_bytes=[data],
    )


def _box(bbox: Any, image: SampleImage) -> Box | None:
    """Clip xywh pixels to the photo, as xyxy in [0, 1]; None when nothing is left or it is no box (NaN included)."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        return None
    x, y, w, h = bbox
    x1, x2 = (min(max(v / image.width, 0.0), 1.0) for v in (x, x + w))
    y1, y2 = (min(max(v / image.height, 0.0), 1.0) for v in (y, y + h))
    box = (round(x1, 6), round(y1, 6), round(x2, 6), round(y2, 6))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _load(path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: seen no JSON ({error}), expected a COCO file") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: seen a JSON {type(data).__name__}, expected a COCO file (an object)")
    return data


def _with(path: str | Path, data: dict[str, Any], name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The list `name` of a COCO file, when each item has `keys`."""
    items = data.get(name)
    if not isinstance(items, list):
        raise ValueError(f"{path}: seen no list {name!r}, expected a COCO file with {name}")
    for number, item in enumerate(items):
        if missing := [key for key in keys if not isinstance(item, dict) or key not in item]:
            raise ValueError(f"{path}: {name}[{number}]: seen no {missing[0]!r}, expected {', '.join(keys)}")
    return items


def _by_image(items: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item["image_id"]].append(item)
    return groups
