"""COCO detection and caption files to samples: localization questions, captions, and all objects of a photo."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.files import listed, load_json, mapped
from ts_lightning.pipelines.converters.source import (
    NO_ANNOTATION,
    NO_BOX,
    Dropped,
    Picture,
    Pictures,
    clean,
    from_xywh,
    make,
    need,
    pick,
    to_box,
)

TASKS = ("localization", "caption", "detection")
WHAT = "a COCO file"
Item = dict[str, Any]


@dataclass(frozen=True)
class Subset:
    """PIN's choice of photos: at most `max_objects`, counted by "instances" or "categories".

    `crowd`: "exclude" drops photos with a crowd, "ignore" does not count crowds, "count" counts one as an object.
    """

    max_objects: int
    count_by: str = "instances"
    crowd: str = "exclude"

    def __post_init__(self) -> None:
        if self.count_by not in ("instances", "categories"):
            raise ValueError(f"count_by: seen {self.count_by!r}, expected instances or categories")
        if self.crowd not in ("exclude", "ignore", "count"):
            raise ValueError(f"crowd: seen {self.crowd!r}, expected exclude, ignore or count")

    def holds(self, categories: Sequence[Any], crowds: Sequence[bool]) -> bool:
        """Whether a photo with objects of these categories, these of them crowds, is in the subset."""
        if self.crowd == "exclude" and any(crowds):
            return False
        kept = [c for c, crowd in zip(categories, crowds, strict=True) if self.crowd == "count" or not crowd]
        return 0 < len(kept if self.count_by == "instances" else set(kept)) <= self.max_objects


def read(
    path: str | Path | None = None,
    pictures: Pictures | None = None,
    annotations: str | Path | None = None,
    captions: str | Path | None = None,
    split: str | None = None,
    tasks: tuple[str, ...] | None = None,
    max_objects: int | None = None,
    count_by: str = "instances",
    crowd: str = "exclude",
) -> Iterator[Sample]:
    """Samples of COCO's photos, by photo and category id.

    `path` is the folder with `annotations/` and the photos, all its splits or `split` (train2017); or `annotations`
    (and `captions`) are files and `pictures` their folder. `tasks`: "localization" asks for each category that occurs
    once in a photo (no crowd of it either), "caption" for the first caption (all are `answers`), "detection" for all
    objects of a photo, crowds kept as regions. None makes all three of a folder, the first two of files, localization
    alone with `max_objects` (see `Subset`). Raises ValueError for files that are not COCO's, or no photo at all.
    """
    pictures = pictures or Pictures()
    subset = None if max_objects is None else Subset(max_objects, count_by, crowd)
    most = TASKS if annotations is None else TASKS[:2]
    wanted = tasks or (most if subset is None else TASKS[:1])
    if unknown := set(wanted) - set(TASKS):
        raise ValueError(f"tasks: seen {sorted(unknown)[0]!r}, expected {', '.join(TASKS)}")
    if annotations is not None:
        yield from photos(pictures, Path(annotations), captions, wanted, subset, "coco")
        return
    folder = Path(path or ".")
    need(folder, f"annotations/instances_{split or '*'}.json")
    for file in sorted(folder.glob(f"annotations/instances_{split or '*'}.json")):
        name = file.stem.removeprefix("instances_")
        texts = file.with_name(f"captions_{name}.json")
        here = pictures.under(folder, name, f"images/{name}")
        yield from photos(here, file, texts if texts.is_file() else None, wanted, subset, "coco")


def photos(
    pictures: Pictures,
    annotations: Path,
    captions: str | Path | None,
    tasks: Sequence[str],
    subset: Subset | None,
    source: str,
    more: Callable[..., Iterator[Sample]] | None = None,
) -> Iterator[Sample]:
    """Samples of one annotation file in COCO's layout (LVIS and Objects365 share it).

    `more(photo id, picture, [(annotation, box or None)], category names)` makes further ones of each photo.
    """
    dropped = pictures.dropped
    instances = mapped(load_json(annotations, WHAT), annotations, WHAT)
    names = {one["id"]: one["name"] for one in _with(annotations, instances, "categories", ("id", "name"))}
    objects = _by_image(_with(annotations, instances, "annotations", ("image_id", "category_id", "bbox")))
    texts: dict[int, list[Item]] = {}
    if captions is not None:
        texts = _by_image(_with(captions, _load(captions), "annotations", ("image_id", "caption")))
    looked, found, seen = 0, 0, set()
    for photo in sorted(_with(annotations, instances, "images", ("id",)), key=lambda photo: photo["id"]):
        if photo["id"] in seen:
            dropped.note("photos whose id comes twice", photo["id"])
            continue
        seen.add(photo["id"])
        here = _unique(objects.get(photo["id"], []), dropped)
        if not here and not texts.get(photo["id"]):
            dropped.note(NO_ANNOTATION, photo["id"])
            continue
        crowds = [bool(one.get("iscrowd")) for one in here]
        if subset is not None and not subset.holds([one["category_id"] for one in here], crowds):
            reason = f"photos with no or more than {subset.max_objects} {subset.count_by} (crowd {subset.crowd})"
            dropped.note(reason, photo["id"], stops=False)
            continue
        dropped.in_subset += subset is not None
        size = (photo["width"], photo["height"]) if {"width", "height"} <= photo.keys() else None
        looked += 1
        known = pictures.get(file_name(photo, annotations), size)
        found += pictures.folder is None or pictures.find(file_name(photo, annotations)) is not None
        if known is None:
            continue
        boxed = _boxed(photo["id"], here, known, names, dropped)
        if "localization" in tasks:
            yield from _questions(photo["id"], known, boxed, names, source, dropped)
        said = _texts(photo["id"], texts.get(photo["id"], []), dropped)
        if "caption" in tasks and said:
            yield _caption(photo["id"], known, said, source)
        if "detection" in tasks and boxed:
            yield _detection(photo["id"], known, boxed, names, said, source)
        if more is not None:
            yield from more(photo["id"], known, boxed, names)
    for number in sorted(set(objects) - seen):
        dropped.note("annotations of photos that the file does not list", number)
    if looked and not found:
        raise ValueError(f"{pictures.folder}: seen none of the photos of {annotations}, expected *.jpg that it names")


def file_name(photo: Item, path: Path) -> str:
    """The photo's file; LVIS names it by its address (train2017/000000000009.jpg)."""
    if "file_name" in photo:
        return str(photo["file_name"])
    if "coco_url" in photo:
        return "/".join(str(photo["coco_url"]).split("/")[-2:])
    raise ValueError(f"{path}: image {photo['id']}: seen no 'file_name', expected file_name or coco_url")


def _unique(objects: list[Item], dropped: Dropped) -> list[Item]:
    """The objects whose ids are new; an id that comes twice in a photo is one object."""
    known: dict[Any, Item] = {}
    for number, one in enumerate(objects):
        key = (one.get("id"), *map(str, one["bbox"])) if "id" in one and isinstance(one["bbox"], list) else number
        if key in known:
            dropped.note("annotations whose id comes twice", one["id"])
        known.setdefault(key, one)
    return list(known.values())


def _boxed(
    photo: int, objects: list[Item], picture: Picture, names: dict[int, str], dropped: Dropped
) -> list[tuple[Item, Box | None]]:
    out = []
    for one in objects:
        if one["category_id"] not in names:
            raise ValueError(f"photo {photo}: seen category id {one['category_id']}, expected one of the file's")
        box = to_box(from_xywh(one["bbox"]), (picture[0].width, picture[0].height))
        if box is None:
            dropped.note(NO_BOX, f"photo {photo} annotation {one.get('id')}")
        elif _leaves(one["bbox"], picture):
            reason = "boxes that leave the picture and were clipped (kept)"
            dropped.note(reason, f"photo {photo} annotation {one.get('id')}", stops=False)
        out.append((one, box))
    return out


def _leaves(bbox: list[float], picture: Picture) -> bool:
    x1, y1, x2, y2 = from_xywh(bbox)
    return x1 < -1 or y1 < -1 or x2 > picture[0].width + 1 or y2 > picture[0].height + 1


def _region(one: Item, box: Box, names: dict[int, str]) -> SampleRegion:
    area, name = one.get("area"), names[one["category_id"]]
    area = float(one["bbox"][2] * one["bbox"][3] if area is None else area)
    return SampleRegion(phrase=name, category=name, iscrowd=int(bool(one.get("iscrowd"))), area_px=area, box=box)


def _questions(
    photo: int,
    picture: Picture,
    objects: list[tuple[Item, Box | None]],
    names: dict[int, str],
    source: str,
    dropped: Dropped,
) -> Iterator[Sample]:
    """A localization sample for every category with one object and no crowd in this photo."""
    crowds = {one["category_id"] for one, _ in objects if one.get("iscrowd")}
    count = Counter(one["category_id"] for one, _ in objects if not one.get("iscrowd"))
    for category in sorted({*crowds, *(c for c, n in count.items() if n > 1)}):
        why = "with a crowd" if category in crowds else "that occur more than once"
        reason = f"categories {why} in a photo (no localization question)"
        dropped.note(reason, f"photo {photo} {names[category]}", stops=False)
    for one, box in sorted(objects, key=lambda pair: pair[0]["category_id"]):
        category = one["category_id"]
        if category in crowds or count[category] > 1 or box is None:
            continue
        key = f"{photo:012d}-{category:02d}"
        yield make(
            source,
            key,
            [picture],
            [(pick("localization", key, phrase=names[category]), "{region:0}")],
            task="grounding",
            subtask="localization",
            regions=[_region(one, box, names)],
            answer=[0],
            meta={"image_id": photo, "annotation_id": one.get("id")},
        )


def _detection(
    photo: int,
    picture: Picture,
    objects: list[tuple[Item, Box | None]],
    names: dict[int, str],
    captions: list[str],
    source: str,
) -> Sample:
    """All objects of a photo in one record; crowds are regions that the answer does not name."""
    kept = [(one, box) for one, box in objects if box is not None]
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, (one, _) in enumerate(kept):
        if not one.get("iscrowd"):
            by_name[names[one["category_id"]]].append(i)
    said = [f"{name} {' '.join(f'{{region:{i}}}' for i in which)}" for name, which in by_name.items()]
    key = f"{photo:012d}-objects"
    return make(
        source,
        key,
        [picture],
        [(pick("detection", key), ", ".join(said) + "." if said else "There is no single object.")],
        task="grounding",
        subtask="detection",
        regions=[_region(one, box, names) for one, box in kept],
        answer=[i for which in by_name.values() for i in which],
        meta={
            "image_id": photo,
            "annotation_ids": [one.get("id") for one, _ in kept],
            "category_ids": [one["category_id"] for one, _ in kept],
            "captions": captions,
        },
    )


def _texts(photo: int, captions: list[Item], dropped: Dropped) -> list[str]:
    texts = []
    for one in captions:
        text = " ".join(str(one["caption"]).split())
        if not text or text != clean(text):
            dropped.note("captions that are empty or hold a placeholder", f"photo {photo}")
        else:
            texts.append(text)
    return texts


def _caption(photo: int, picture: Picture, texts: list[str], source: str) -> Sample:
    key = f"{photo:012d}-caption"
    meta = {"image_id": photo, "annotation_id": None}
    turns = [(pick("caption", key), texts[0])]
    return make(source, key, [picture], turns, subtask="caption", answer=texts[0], answers=texts, meta=meta)


def _load(path: str | Path) -> Item:
    return mapped(load_json(path, WHAT), path, WHAT)


def _with(path: str | Path, data: Item, name: str, keys: tuple[str, ...]) -> list[Item]:
    """The list `name` of a COCO file, when each item has `keys`."""
    if not isinstance(data.get(name), list):
        raise ValueError(f"{path}: seen no list {name!r}, expected a COCO file with {name}")
    return listed(data[name], f"{path}: {name}", keys, WHAT)


def _by_image(items: list[Item]) -> dict[int, list[Item]]:
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        groups[item["image_id"]].append(item)
    return groups
