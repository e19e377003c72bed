"""An annotation file in COCO's layout as people write it: odd ids, sizes, areas, crowds and rotations put in order."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_lightning.pipelines.converters.files import Broken, listed, load_json, mapped
from ts_lightning.pipelines.converters.source import NO_SIZE, Dropped, Stop, clean, from_xywh, whole, whole_pixels

WHAT = "a COCO file"
Item = dict[str, Any]
Id = int | str
_PANOPTIC = (
    "seen panoptic segments, expected boxes: use annotations/instances_*.json of the same release, or write the file "
    "with panopticapi's converters/panoptic2detection_coco_format.py"
)


@dataclass(frozen=True)
class CocoFile:
    """Photos, their objects by photo id, and the categories' names; ids are numbers where they are written as such.

    Of an object `iscrowd` is 0 or 1, `area` a number above 0 or missing, `bbox` upright; `category_id` may be missing
    in `names` (a nameless one).
    """

    path: Path
    photos: list[Item]
    objects: dict[Id, list[Item]]
    names: dict[Id, str]


def load(path: str | Path) -> Item:
    """The JSON object of a COCO file; ValueError for panoptic annotations."""
    data = mapped(load_json(path, WHAT), path, WHAT)
    first = next(iter(data["annotations"]), None) if isinstance(data.get("annotations"), list) else None
    if isinstance(first, dict) and "segments_info" in first:
        raise ValueError(f"{path}: {_PANOPTIC}")
    return data


def only_captions(data: Item) -> bool:
    """Whether a file holds captions and no objects."""
    notes = data.get("annotations")
    first = notes[0] if isinstance(notes, list) and notes else None
    return "categories" not in data and isinstance(first, dict) and "caption" in first and "bbox" not in first


def instances(path: str | Path, data: Item, dropped: Dropped) -> CocoFile:
    """The photos and objects of a file; what can't be used is counted. ValueError for a file of another layout."""
    path = Path(path)
    names = _names(path, data, dropped)
    objects: dict[Id, list[Item]] = defaultdict(list)
    notes = part(path, data, "annotations", ("image_id",))
    if notes and not any(isinstance(one, dict) and not isinstance(one, Broken) and "bbox" in one for one in notes):
        raise ValueError(f"{path}: annotations: seen no 'bbox', expected {WHAT} with boxes")
    for number, one in enumerate(notes):
        where = f"{path.name} annotation {one.get('id', number) if not isinstance(one, Broken) else one.place}"
        with dropped.row(where):
            made = _object(one, where, dropped)
            if made["category_id"] not in names:
                dropped.note("annotations of a category that the file does not list", where)
                continue
            objects[made["image_id"]].append(made)
    return CocoFile(path, list(photos(path, data, dropped)), objects, names)


def photos(path: Path, data: Item, dropped: Dropped) -> Iterator[Item]:
    """The photos by id, numbers first; `width` and `height` are whole pixels, or both missing."""
    found = []
    for one in whole(part(path, data, "images", ("id",)), path, dropped):
        with dropped.row(f"{path.name} image {one['id']}"):
            sides = [whole_pixels(one.get(side)) for side in ("width", "height")]
            if None in sides and {"width", "height"} & one.keys():
                dropped.note(NO_SIZE, f"{path.name} image {one['id']}", stops=False)
            known = {"width": sides[0], "height": sides[1]} if None not in sides else {}
            rest = {key: value for key, value in one.items() if key not in ("width", "height")}
            found.append(rest | known | {"id": as_id(one["id"])})
    return iter(sorted(found, key=lambda one: order(one["id"])))


def size(photo: Item) -> tuple[int, int] | None:
    """The annotated width and height of a photo of `photos`, None where the file does not say them."""
    return (photo["width"], photo["height"]) if "width" in photo else None


def captions(path: str | Path, data: Item, dropped: Dropped) -> dict[Id, list[Item]]:
    """The captions by photo id."""
    groups: dict[Id, list[Item]] = defaultdict(list)
    for one in whole(part(Path(path), data, "annotations", ("image_id", "caption")), Path(path), dropped):
        with dropped.row(f"{Path(path).name} caption {one.get('id')}"):
            clean(one["caption"])  # null is no caption
            groups[as_id(one["image_id"])].append(one)
    return groups


def part(path: Path, data: Item, name: str, keys: tuple[str, ...]) -> list[Item]:
    """The list `name` of a COCO file; items without `keys` are `Broken`."""
    if not isinstance(data.get(name), list):
        raise ValueError(f"{path}: seen no list {name!r}, expected a COCO file with {name}")
    return listed(data[name], f"{path}: {name}", keys, WHAT)


def as_id(value: Any) -> Id:
    """An id as a number where it is one (7, 7.0, "7"), else its text; ValueError for what is no id."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise ValueError(f"seen the id {value!r}, expected a number or a text")
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and str(int(value)) == value else value
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"seen the id {value!r}, expected a number or a text")
        return int(value)
    return value


def order(value: Id) -> tuple[bool, int, str]:
    """Numbers by size before texts."""
    return (isinstance(value, str), value if isinstance(value, int) else 0, str(value))


def padded(photo: Id) -> str:
    """A photo's id in keys: COCO's twelve digits, or the text."""
    return f"{photo:012d}" if isinstance(photo, int) else photo


def _names(path: Path, data: Item, dropped: Dropped) -> dict[Id, str]:
    """Categories that differ in case or blanks alone are one, in the first one's spelling."""
    names: dict[Id, str] = {}
    spelled: dict[str, str] = {}
    for one in whole(part(path, data, "categories", ("id", "name")), path, dropped):
        with dropped.row(f"{path.name} category {one['id']}"):
            name = one["name"]
            text = " ".join(clean(name).split()) if isinstance(name, str | int | float) else ""
            if not text or isinstance(name, bool):
                raise ValueError(f"seen the name {name!r}, expected a text")
            text = spelled.setdefault(text.casefold(), text)
            number = as_id(one["id"])
            if names.get(number, text) != text:
                raise Stop(f"{path}: seen category id {number} as {names[number]!r} and {text!r}, expected one name")
            names[number] = text
    return names


def _object(one: Item, where: str, dropped: Dropped) -> Item:
    made = one | {"image_id": as_id(one["image_id"]), "category_id": as_id(one["category_id"])}
    made["iscrowd"] = _crowd(one.get("iscrowd"), where, dropped)
    made["bbox"] = one.get("bbox")  # without one it still counts: its category occurs once more
    corners = from_xywh(made["bbox"])
    area = one.get("area")
    if area is not None and not (_number(area) and area > 0):
        dropped.note("areas that are no number above 0 (taken from the box)", where, stops=False)
        area = None
    if area is None and corners:
        area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    made["area"] = area if area is not None and area > 0 else None
    attributes = one.get("attributes")
    turn: Any = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    if corners and _number(turn) and turn % 360:
        dropped.note("rotated rectangles (the upright box around one is taken)", where, stops=False)
        made["bbox"] = _around(one["bbox"], turn)
    return made


def _around(xywh: list[float], degrees: float) -> list[float]:
    """The upright box around a rectangle that is turned about its centre."""
    x, y, w, h = xywh
    cosine, sine = (abs(f(math.radians(degrees))) for f in (math.cos, math.sin))
    wide, high = round(w * cosine + h * sine, 9), round(w * sine + h * cosine, 9)
    return [x + (w - wide) / 2, y + (h - high) / 2, wide, high]


def _crowd(value: Any, where: str, dropped: Dropped) -> int:
    if value in (None, 0, 1, "0", "1", ""):
        return int(value or 0)
    dropped.note("crowd flags that are neither 0 nor 1 (read as 0)", where, stops=False)
    return 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e300
