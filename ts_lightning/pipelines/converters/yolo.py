"""YOLO folders (Ultralytics, Darknet): a text file a photo, lines of class, centre and size in parts of the picture."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import read_text
from ts_lightning.pipelines.converters.photo_objects import TASKS, check_tasks, questions
from ts_lightning.pipelines.converters.source import (
    SUFFIXES,
    Pictures,
    clean,
    files_of,
    need,
    shared_stems,
    without_annotations,
)

_DESCRIPTIONS = ("data.yaml", "*.yaml", "*.yml")
_LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt")  # Darknet's, of pictures


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, tasks: tuple[str, ...] = TASKS
) -> Iterator[Sample]:
    """Samples of `path`, the folder with labels/[SPLIT/]**/*.txt, images/[SPLIT/]**/* and data.yaml or classes.txt.

    Roboflow's SPLIT/labels and SPLIT/images are read too, and labels beside the pictures: in `path` (LabelImg, Darknet)
    or in obj_SPLIT_data (CVAT). A line of more than five numbers is an outline, of which the box is taken. Without the
    pictures nothing can be made: their sizes are nowhere else. Keypoints (kpt_shape in data.yaml) behind a box are
    passed over. `tasks`: localization, detection and all, as in `photo_objects`.
    """
    folder, pictures = Path(path), pictures or Pictures()
    check_tasks(tasks)
    need(folder, *_places(split), *([] if split else ["*.txt"]))
    names, pose = _names(folder)
    spelled: dict[str, str] = {}
    names = {number: spelled.setdefault(name.casefold(), name) for number, name in names.items()}
    labels: dict[Path, list[Path]] = {}
    for file in files_of(folder, *_places(None), *_places(split)) or files_of(folder, "*.txt"):
        if file.name != "classes.txt":
            labels.setdefault(file.parent, []).append(file)
    shared = shared_stems(file for files in labels.values() for file in files)
    beside = {place: _beside(pictures, folder, place, shared) for place in sorted(labels)}
    if folder in labels:
        labels[folder] = [one for one in labels[folder] if one.name not in _LISTS or _picture_name(one, beside[folder])]
    inside = {file.parent for file in files_of(folder, *_places(split))}
    chosen = {place: here for place, here in beside.items() if split is None or place in inside}
    stems = [(beside[place], [file.stem for file in files]) for place, files in labels.items()]
    without_annotations(chosen.values(), stems)
    for place, here in chosen.items():
        for file in labels[place]:
            with here.dropped.row(str(file.relative_to(folder))):
                name = str(file.relative_to(folder).with_suffix(""))
                yield from _photo(file, name, here, names, pose, tasks)


def _beside(pictures: Pictures, folder: Path, place: Path, shared: Collection[str]) -> Pictures:
    """The pictures of the labels in `place`: in images/ for labels/, or in the folder given that goes with it."""
    parts = place.relative_to(folder).parts
    below = [part.replace("labels", "images") for part in parts]
    if pictures.folder is None:
        return Pictures(folder.joinpath(*below), pictures.excluded, pictures.dropped)
    here = pictures.along(*below, shared=shared)
    alone = [part for part in parts if part != "labels"]
    return pictures.along(*alone, shared=shared) if here.folder == pictures.folder else here


def _places(split: str | None) -> list[str]:
    if split is not None:
        return [f"labels/{split}/**/*.txt", f"{split}/labels/**/*.txt", f"obj_{split}_data/**/*.txt"]
    return ["labels/**/*.txt", "*/labels/**/*.txt", "obj_*_data/**/*.txt"]


def _names(folder: Path) -> tuple[dict[int, str], bool]:
    """Class names of classes.txt or obj.names, a line each, or of a data.yaml; whether keypoints follow the boxes."""
    for name in ("classes.txt", "labels/classes.txt", "obj.names"):
        if (folder / name).is_file():
            lines, pose = read_text(folder / name, "class names, one a line").split("\n"), False
            with suppress(ValueError):  # the names are here: a YAML of something else does not matter
                pose = "kpt_shape" in _described(folder)[1]
            return {i: clean(line).strip() for i, line in enumerate(lines) if line.strip()}, pose
    file, data = _described(folder)
    listed = data.get("names")
    if isinstance(listed, list):
        listed = {str(i): name for i, name in enumerate(listed)}
    known = isinstance(listed, dict) and all(k.isdecimal() and isinstance(n, str) for k, n in listed.items())
    if not listed or not known:
        raise ValueError(f"{file}: seen no 'names', expected a list of class names")
    return {int(number): clean(name).strip() for number, name in listed.items()}, "kpt_shape" in data


def _described(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder's data.yaml and what it says."""
    file = need(folder, *_DESCRIPTIONS)
    text = read_text(file, "YOLO's data.yaml with names")
    try:
        data: Any = yaml.load(text, yaml.BaseLoader)  # every value as it is written: a class may be called no or 7
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: seen no YAML ({' '.join(str(error).split())}), expected a list of names") from None
    return file, data if isinstance(data, dict) else {}


def _picture_name(file: Path, pictures: Pictures) -> str | None:
    """The picture of a label file, None where none is there."""
    names = [f"{file.stem}{suffix}" for suffix in SUFFIXES]
    return next((name for place in (pictures.near, pictures) for name in names if place.find(name)), None)


def _photo(
    file: Path, key: str, pictures: Pictures, names: dict[int, str], pose: bool, tasks: tuple[str, ...]
) -> Iterator[Sample]:
    known = pictures.get(_picture_name(file, pictures) or f"{file.stem}.jpg")
    if known is None:
        return
    size = (known[0].width, known[0].height)
    regions: list[SampleRegion] = []
    every: list[str] = []
    for number, line in enumerate(read_text(file, "class, x, y, width, height").split("\n"), 1):
        if not line.strip():
            continue
        with pictures.dropped.row(f"{file.name} line {number}"):
            kind, *values = line.split()
            if not float(kind).is_integer() or (name := names.get(int(float(kind)))) is None:
                raise ValueError(f"seen class {kind}, expected one of {len(names)}")
            every.append(name)
            corners = _corners([float(value) for value in (values[:4] if pose else values)])
            box = pictures.dropped.box(corners, (1, 1), f"{file.name} line {number}")
            if box is None:
                continue
            area = (box[2] - box[0]) * size[0] * (box[3] - box[1]) * size[1]
            regions.append(SampleRegion(phrase=name, category=name, area_px=area, box=box))
    yield from questions("yolo", key, known, regions, every, tasks, pictures.dropped, key)


def _corners(values: list[float]) -> tuple[float, ...]:
    """The corners of centre and size, or around an outline, in parts of the picture; () for pixels."""
    if len(values) == 4:
        x, y, w, h = values
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise ValueError(f"seen {len(values)} numbers, expected centre and size, or an outline")
    return corners if max(corners) < 2 else ()
