"""Objects365: COCO's layout in zhiyuan_objv2_{train,val}.json, photos in patches."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.coco import TASKS, photos
from ts_lightning.pipelines.converters.coco_file import Id, padded
from ts_lightning.pipelines.converters.pointing import category_question, check_kind
from ts_lightning.pipelines.converters.source import Picture, Pictures, all_located, make, pick

MORE = ("region", "image")


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    tasks: tuple[str, ...] | None = None,
    region: str = "box",
    per_photo: int | None = None,
    seed: int = 0,
) -> Iterator[Sample]:
    """Samples as `coco.read` makes them; `path` is the folder of zhiyuan_objv2_*.json, or one such file.

    Of its own are two `tasks`, made when named: "region" asks for the category of each object (at most `per_photo` of
    a photo) under a "click", a "box", a "polygon" or "mixed", one of them (`region`), drawn from (`seed`, sample)
    alone; "image" asks which objects are there. A photo `images/v1/patch8/NAME.jpg` is looked for below train/, val/,
    images/ and by its patch.
    """
    wanted = tasks or TASKS
    if unknown := set(wanted) - {*TASKS, *MORE}:
        raise ValueError(f"tasks: seen {sorted(unknown)[0]!r}, expected {', '.join((*TASKS, *MORE))}")
    check_kind(region)
    if per_photo is not None and per_photo < 1:
        raise ValueError(f"per_photo: seen {per_photo}, expected at least 1")
    more = partial(_more, tasks=wanted, region=region, per_photo=per_photo, seed=seed)
    pictures, name = pictures or Pictures(), f"zhiyuan_objv2_{split or '*'}.json"
    files, folder = all_located(path, name, f"annotations/{name}")
    for file in files:
        yield from photos(pictures.under(folder, *_patches(folder)), file, None, wanted, None, "objects365", more)


def _more(
    photo: Id,
    picture: Picture,
    objects: list[tuple[dict[str, Any], Box | None]],
    names: Mapping[Id, str],
    tasks: tuple[str, ...],
    region: str,
    per_photo: int | None,
    seed: int,
) -> Iterator[Sample]:
    kept = [(number, one, box) for number, (one, box) in enumerate(objects) if box is not None]
    if "region" in tasks:
        single = [item for item in kept if not item[1]["iscrowd"]]
        if per_photo is not None and per_photo < len(single):
            single = sorted(Random(f"{seed} {photo}").sample(single, per_photo), key=lambda item: item[0])
        for number, one, box in single:
            key = f"{padded(photo)}-region-{number:04d}"
            meta = {"image_id": photo, "annotation_id": one.get("id")}
            name = names[one["category_id"]]
            template = "mgvlid/objects365_region"
            yield category_question("objects365", key, picture, one, box, name, template, region, seed, meta)
    if "image" in tasks and kept:
        key = f"{padded(photo)}-image"
        there = Counter(names[one["category_id"]] for _, one, _ in kept)
        said = ", ".join(name for name, _ in there.most_common())
        turns = [(pick("mgvlid/objects365_image", key), said)]
        yield make("objects365", key, [picture], turns, subtask="objects", answer=said, meta={"image_id": photo})


def _patches(folder: Path) -> list[str]:
    """Folders below `folder` that hold photos: patch0 ... patch50, with or without train/ or images/ above them."""
    found = {str(p.relative_to(folder)) for depth in ("patch*", "*/patch*", "*/*/patch*") for p in folder.glob(depth)}
    return [*sorted(found), "train", "val", "images"]
