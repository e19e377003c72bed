"""YOLO folders (Ultralytics, Darknet): a text file a photo, lines of class, centre and size in parts of the picture."""

import re
from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.files import read_text
from ts_lightning.pipelines.converters.photo_objects import TASKS, check_tasks, questions
from ts_lightning.pipelines.converters.source import NO_BOX, SUFFIXES, Pictures, clean, need, to_box

_NAMES = re.compile(
    r"^names:[ \t]*(\[[^\]]*\]|(?:[ \t]*\n(?:[ \t]*-|[ \t]+\d+[ \t]*:)[^\n]*)+|\{[^}]*\})", re.MULTILINE
)


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, tasks: tuple[str, ...] = TASKS
) -> Iterator[Sample]:
    """Samples of `path`, the folder with labels/[SPLIT/]*.txt, images/[SPLIT/]* and data.yaml or classes.txt.

    Roboflow's SPLIT/labels and SPLIT/images are read too, and labels beside the pictures (LabelImg, Darknet). A line of
    more than five numbers is an outline, of which the box is taken. Without the pictures nothing can be made: their
    sizes are nowhere else. `tasks`: localization, detection and all, as in `photo_objects`.
    """
    folder, pictures = Path(path), pictures or Pictures()
    check_tasks(tasks)
    need(folder, *_places("labels", split, "*.txt"), *([] if split else ["*.txt"]))
    names = _names(folder)
    spelled: dict[str, str] = {}
    names = {number: spelled.setdefault(name.casefold(), name) for number, name in names.items()}
    part = split or "*"
    folders = sorted({p.parent for place in _places("labels", split, "*.txt") for p in folder.glob(place)})
    for place in folders or [folder]:
        below = str(place.relative_to(folder)).replace("labels", "images")
        here = Pictures(pictures.folder or folder / below, pictures.excluded, pictures.dropped)
        here.subfolders = (".", below, part)
        files = sorted(file for file in place.glob("*.txt") if file.name != "classes.txt")
        here.without_annotations(file.stem for file in files)
        for file in files:
            with here.dropped.row(str(file.relative_to(folder))):
                yield from _photo(file, str(file.relative_to(folder).with_suffix("")), here, names, tasks)


def _places(name: str, split: str | None, pattern: str) -> list[str]:
    if split is not None:
        return [f"{name}/{split}/{pattern}", f"{split}/{name}/{pattern}"]
    return [f"{name}/{pattern}", f"{name}/*/{pattern}", f"*/{name}/{pattern}"]


def _names(folder: Path) -> dict[int, str]:
    """Class names of classes.txt or obj.names, a line each, or of a data.yaml."""
    for name in ("classes.txt", "labels/classes.txt", "obj.names"):
        if (folder / name).is_file():
            lines = read_text(folder / name, "class names, one a line").split("\n")
            return {i: clean(line).strip() for i, line in enumerate(lines) if line.strip()}
    file = need(folder, "data.yaml", "*.yaml", "*.yml")
    text = read_text(file, "YOLO's data.yaml with names")
    found = _NAMES.search(text)
    if found is None:
        raise ValueError(f"{file}: seen no 'names', expected a list of class names")
    listed = found[1].strip()
    if listed[0] in "[{":
        words = [word.strip() for word in listed[1:-1].split(",") if word.strip()]
        pairs = [word.split(":", 1) if listed[0] == "{" else [str(i), word] for i, word in enumerate(words)]
    else:
        lines = [line.strip() for line in listed.splitlines() if line.strip()]
        pairs = [[str(i), line[1:]] if line[0] == "-" else line.split(":", 1) for i, line in enumerate(lines)]
    return {int(number): clean(name.strip().strip("'\"")) for number, name in pairs}


def _photo(file: Path, key: str, pictures: Pictures, names: dict[int, str], tasks: tuple[str, ...]) -> Iterator[Sample]:
    found = next((f"{file.stem}{s}" for s in SUFFIXES if pictures.find(f"{file.stem}{s}")), f"{file.stem}.jpg")
    known = pictures.get(found)
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
            if (name := names.get(int(float(kind)))) is None:
                raise ValueError(f"seen class {kind}, expected one of {len(names)}")
            every.append(name)
            box = _box([float(value) for value in values])
            if box is None:
                pictures.dropped.note(NO_BOX, f"{file.name} line {number}")
                continue
            area = (box[2] - box[0]) * size[0] * (box[3] - box[1]) * size[1]
            regions.append(SampleRegion(phrase=name, category=name, area_px=area, box=box))
    yield from questions("yolo", key, known, regions, every, tasks, pictures.dropped, key)


def _box(values: list[float]) -> Box | None:
    """The box of centre and size, or around an outline, clipped to the picture; None for what lies outside of it."""
    if len(values) == 4:
        x, y, w, h = values
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise ValueError(f"seen {len(values)} numbers, expected centre and size, or an outline")
    return to_box(corners, (1, 1)) if max(corners) < 2 else None  # beyond it they are pixels
