"""COCO detection and caption files to samples: localization questions, captions, and all objects of a photo."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters import coco_file
from ts_lightning.pipelines.converters.coco_file import Id, Item, padded
from ts_lightning.pipelines.converters.source import (
    NO_ANNOTATION,
    Dropped,
    Picture,
    Pictures,
    clean,
    files_of,
    from_xywh,
    make,
    need,
    pick,
)

TASKS = ("localization", "caption", "detection")
MORE = ("all",)
MOST = 50  # boxes of one answer


@dataclass(frozen=True)
class Subset:
    """PIN's choice of photos: at most `max_objects`, counted by "instances" or "categories".

    `crowd`: "exclude" drops photos with a crowd, "ignore" does not count crowds, "count" counts one as an object.
    """

    max_objects: int
    count_by: str = "categories"
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
    count_by: str = "categories",
    crowd: str = "exclude",
) -> Iterator[Sample]:
    """Samples of COCO's photos, by photo and category id.

    `path` is the folder with `annotations/` and the photos, all its splits or `split` (train2017); or `annotations`
    (and `captions`) are files and `pictures` their folder. `tasks`: "localization" asks for each category that occurs
    once in a photo (no crowd of it either), "all" for all boxes of one that occurs more than once, "caption" for the
    first caption (all are `answers`), "detection" for all objects of a photo, crowds kept as regions. None makes
    localization, caption and detection of a folder, the first two of files, localization alone with `max_objects` (see
    `Subset`). A folder may also be Roboflow's (train/_annotations.coco.json), and `annotations` a captions file alone.
    Raises ValueError for files that are not COCO's (panoptic ones have no boxes), or no photo at all.
    """
    pictures = pictures or Pictures()
    subset = None if max_objects is None else Subset(max_objects, count_by, crowd)
    most = TASKS if annotations is None else TASKS[:2]
    wanted = tasks or (most if subset is None else TASKS[:1])
    if unknown := set(wanted) - {*TASKS, *MORE}:
        raise ValueError(f"tasks: seen {sorted(unknown)[0]!r}, expected {', '.join((*TASKS, *MORE))}")
    if annotations is None and path is None and captions is not None:
        annotations, captions = captions, None
    if annotations is not None:
        yield from photos(pictures, Path(annotations), captions, wanted, subset, "coco")
        return
    folder = Path(path or ".")
    if folder.is_file():
        yield from photos(pictures, folder, captions, wanted, subset, "coco")
        return
    if exported := files_of(folder, f"{split or '*'}/_annotations.coco.json"):
        for file in exported:
            here = pictures.under(folder, file.parent.name)
            yield from photos(here, file, None, wanted, subset, f"coco-{file.parent.name}")
        return
    need(folder, f"annotations/instances_{split or '*'}.json")
    for file in files_of(folder, f"annotations/instances_{split or '*'}.json"):
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
    data = coco_file.load(annotations)
    if captions is None and coco_file.only_captions(data):
        data, captions = data | {"categories": [], "annotations": []}, annotations
    known = coco_file.instances(annotations, data, dropped)
    texts: dict[Id, list[Item]] = {}
    if captions is not None:
        texts = coco_file.captions(captions, coco_file.load(captions), dropped)
    pictures.naming(photo.get("file_name") for photo in known.photos)
    looked, found, seen = 0, 0, set()
    for photo in known.photos:
        with dropped.row(f"{annotations.name} image {photo['id']}"):
            number = photo["id"]
            if number in seen:
                dropped.note("photos whose id comes twice", number)
                continue
            seen.add(number)
            here = _unique(known.objects.get(number, []), dropped)
            if not here and not texts.get(number):
                dropped.note(NO_ANNOTATION, number)
                continue
            crowds = [bool(one["iscrowd"]) for one in here]
            if subset is not None and not subset.holds([known.names[one["category_id"]] for one in here], crowds):
                reason = f"photos with no or more than {subset.max_objects} {subset.count_by} (crowd {subset.crowd})"
                dropped.note(reason, number, stops=False)
                continue
            dropped.in_subset += subset is not None
            name = file_name(photo, annotations)
            looked += 1
            picture = pictures.get(name, coco_file.size(photo))
            found += pictures.folder is None or pictures.find(name) is not None
            if picture is None:
                continue
            boxed = _boxed(number, here, picture, dropped)
            partly = _federated(photo, known.names)
            if "localization" in tasks:
                yield from _questions(number, picture, boxed, known.names, source, partly, dropped)
            if "all" in tasks:
                yield from _all_of(number, picture, boxed, known.names, source, partly)
            said = _texts(number, texts.get(number, []), dropped)
            if "caption" in tasks and said:
                yield _caption(number, picture, said, source)
            if "detection" in tasks and any(box for _, box in boxed):
                yield _detection(number, picture, boxed, known.names, said, source, partly)
            if more is not None:
                yield from more(number, picture, boxed, known.names)
    for number in sorted(set(known.objects) - seen, key=coco_file.order):
        dropped.note("annotations of photos that the file does not list", number)
    if looked and not found:
        raise ValueError(f"{pictures.folder}: seen none of the photos of {annotations}, expected *.jpg that it names")


def _federated(photo: Item, names: Mapping[Id, str]) -> dict[str, list[str]]:
    """LVIS: categories that were looked for and are not there, and those with objects left unannotated."""
    keys = {"absent": "neg_category_ids", "not_exhaustive": "not_exhaustive_category_ids"}
    return {
        word: sorted(names[number] for number in photo[key] if number in names)
        for word, key in keys.items()
        if isinstance(photo.get(key), list)
    }


def file_name(photo: Item, path: Path) -> str:
    """The photo's file; LVIS names it by its address (train2017/000000000009.jpg)."""
    if "file_name" in photo:
        return photo["file_name"]
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


def _boxed(photo: Id, objects: list[Item], picture: Picture, dropped: Dropped) -> list[tuple[Item, Box | None]]:
    out = []
    for one in objects:
        size, name = (picture[0].width, picture[0].height), f"photo {photo} annotation {one.get('id')}"
        out.append((one, dropped.box(from_xywh(one["bbox"]), size, name)))
    return out


def _region(one: Item, box: Box, names: Mapping[Id, str]) -> SampleRegion:
    name = names[one["category_id"]]
    return SampleRegion(phrase=name, category=name, iscrowd=one["iscrowd"], area_px=float(one["area"]), box=box)


def _counts(objects: list[tuple[Item, Box | None]], names: Mapping[Id, str]) -> tuple[set[str], Counter[str]]:
    """The names of crowds, and how often the other names occur."""
    crowds = {names[one["category_id"]] for one, _ in objects if one["iscrowd"]}
    return crowds, Counter(names[one["category_id"]] for one, _ in objects if not one["iscrowd"])


def _questions(
    photo: Id,
    picture: Picture,
    objects: list[tuple[Item, Box | None]],
    names: Mapping[Id, str],
    source: str,
    partly: dict[str, list[str]],
    dropped: Dropped,
) -> Iterator[Sample]:
    """A localization sample for every name with one object and no crowd in this photo, where all were annotated."""
    crowds, count = _counts(objects, names)
    unsure = {name for name in partly.get("not_exhaustive", []) if name in count}
    first = {name: number for number, name in reversed([*names.items()])}
    unasked = {*crowds, *unsure, *(c for c, n in count.items() if n > 1)}
    for name in sorted(unasked, key=lambda name: coco_file.order(first[name])):
        why = "that occur more than once" if name not in unsure else "of which not all objects are annotated"
        why = "with a crowd" if name in crowds else why
        reason = f"categories {why} in a photo (no localization question)"
        dropped.note(reason, f"photo {photo} {name}", stops=False)
    for one, box in sorted(objects, key=lambda pair: coco_file.order(pair[0]["category_id"])):
        name, category = names[one["category_id"]], one["category_id"]
        if name in crowds or name in unsure or count[name] > 1 or box is None:
            continue
        key = f"{padded(photo)}-{category:02d}" if isinstance(category, int) else f"{padded(photo)}-{category}"
        yield make(
            source,
            key,
            [picture],
            [(pick("localization", key, phrase=name), "{region:0}")],
            task="grounding",
            subtask="localization",
            regions=[_region(one, box, names)],
            answer=[0],
            meta={"image_id": photo, "annotation_id": one.get("id")},
        )


def _all_of(
    photo: Id,
    picture: Picture,
    objects: list[tuple[Item, Box | None]],
    names: Mapping[Id, str],
    source: str,
    partly: dict[str, list[str]],
) -> Iterator[Sample]:
    """A question for all boxes of every name that occurs more than once, where all were annotated and none is bad."""
    crowds, count = _counts(objects, names)
    for name in sorted(set(count) - crowds - set(partly.get("not_exhaustive", []))):
        mine = [(one, box) for one, box in objects if names[one["category_id"]] == name]
        boxes = [box for _, box in mine if box is not None]
        if not 1 < len(boxes) == len(mine) <= MOST:
            continue
        key = f"{padded(photo)}-all-{name}"
        ids = [one.get("id") for one, _ in mine]
        yield make(
            source,
            key,
            [picture],
            [(pick("localization_all", key, phrase=name), "{region:0}")],
            task="grounding",
            subtask="localization_all",
            regions=[SampleRegion(phrase=name, category=name, boxes=boxes)],
            answer=[0],
            meta={"image_id": photo, "annotation_ids": ids},
        )


def _detection(
    photo: Id,
    picture: Picture,
    objects: list[tuple[Item, Box | None]],
    names: Mapping[Id, str],
    captions: list[str],
    source: str,
    partly: dict[str, list[str]],
) -> Sample:
    """All objects of a photo in one record; crowds are regions that the answer does not name."""
    kept = [(one, box) for one, box in objects if box is not None]
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, (one, _) in enumerate(kept):
        if not one["iscrowd"]:
            by_name[names[one["category_id"]]].append(i)
    said = [f"{name} {' '.join(f'{{region:{i}}}' for i in which)}" for name, which in by_name.items()]
    key = f"{padded(photo)}-objects"
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
        }
        | partly,
    )


def _texts(photo: Id, captions: list[Item], dropped: Dropped) -> list[str]:
    texts = []
    for one in captions:
        text = " ".join(str(one["caption"]).split())
        if not text or text != clean(text):
            dropped.note("captions that are empty or hold a placeholder", f"photo {photo}")
        else:
            texts.append(text)
    return texts


def _caption(photo: Id, picture: Picture, texts: list[str], source: str) -> Sample:
    key = f"{padded(photo)}-caption"
    meta = {"image_id": photo, "annotation_id": None}
    turns = [(pick("caption", key), texts[0])]
    return make(source, key, [picture], turns, subtask="caption", answer=texts[0], answers=texts, meta=meta)
