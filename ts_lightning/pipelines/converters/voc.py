"""PASCAL VOC: one XML file a photo, boxes counted from 1."""

import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree import ElementTree

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.coco import Subset
from ts_lightning.pipelines.converters.files import read_text
from ts_lightning.pipelines.converters.photo_objects import TASKS, check_tasks, questions
from ts_lightning.pipelines.converters.source import (
    BAD_ROW,
    SUFFIXES,
    Pictures,
    clean,
    files_of,
    need,
    safe_key,
    shared_stems,
    without_annotations,
)

_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding=["']([A-Za-z0-9._-]+)["']""")


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    tasks: tuple[str, ...] | None = None,
    max_objects: int | None = None,
    count_by: str = "categories",
    difficult: bool = True,
) -> Iterator[Sample]:
    """Samples of `path`, a VOC year's folder (Annotations, JPEGImages, ImageSets/Main), or XML beside its pictures.

    Folders below these are read too: Roboflow's train/*.xml, Annotations/SITE/*.xml with JPEGImages/SITE. `split` names
    a list of ImageSets/Main (test); None takes every annotation file. Pixel 1 is VOC's first: a box is xmin - 1,
    ymin - 1, xmax, ymax. `tasks`: localization, detection and all, as in `photo_objects`; `max_objects` as in COCO's
    `Subset`; `difficult` False leaves those objects out. An XML file goes with the picture that it names; where that is
    another file's, it is left out.
    """
    folder, pictures = Path(path), pictures or Pictures()
    if (folder / "VOCdevkit").is_dir():
        raise ValueError(f"{folder}: seen VOCdevkit, expected one year's folder in it (VOCdevkit/VOC2007)")
    labels = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = files_of(labels, "**/*.xml")
    if labels == folder:  # another one's folder of VOC's layout may lie below
        files = [file for file in files if "Annotations" not in file.relative_to(folder).parts]
    if not files:
        need(folder, "Annotations/*.xml", "*.xml")
    subset = None if max_objects is None else Subset(max_objects, count_by, "ignore")
    wanted = tasks or (TASKS if subset is None else TASKS[:1])
    check_tasks(wanted)
    known: dict[Path, set[str]] = {}
    for file in files:
        known.setdefault(file.parent, set()).add(file.stem)
    shared = shared_stems(files)
    if split is not None:
        listing = need(folder, f"ImageSets/Main/{split}.txt")
        lines = read_text(listing, "names of photos, one a line").split("\n")
        files = [labels / f"{line.split()[0]}.xml" for line in lines if line.strip()]
    places = sorted({file.parent for file in files})
    beside = {place: _beside(pictures, folder, labels, place, shared) for place in places}
    if split is None:
        without_annotations(beside.values(), [(beside[place], known[place]) for place in places])
    for place, here in beside.items():
        stems = known.get(place, set())
        for file in (file for file in files if file.parent == place):
            with here.dropped.row(file.name):
                if not file.is_file():
                    here.dropped.note("names of the split without an annotation file", file.stem)
                    continue
                year, base = (place.name, place) if labels == folder else (folder.name, labels)
                key = safe_key(str(file.relative_to(base).with_suffix("")))
                yield from _photo(file, key, here, wanted, subset, difficult, year, stems)


def _beside(pictures: Pictures, folder: Path, labels: Path, place: Path, shared: Collection[str]) -> Pictures:
    """The pictures of the annotation files in `place`: there, or in the folder of JPEGImages that goes with it."""
    if labels == folder and pictures.folder is None:
        return pictures.under(place, ".")
    below = place.relative_to(labels).parts
    if labels == folder:
        return pictures.along(*below, shared=shared)
    here = pictures.under(folder, "JPEGImages")
    return here.along("JPEGImages", *below, shared=shared) if below else here


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file in the encoding that it declares; ValueError with the line where it breaks.

    Entities are refused.
    """
    data = path.read_bytes()
    declared = _ENCODING.match(data)
    names = [declared[1].decode()] if declared else []
    text = None
    for name in ["utf-16"] if data[:2] in (b"\xff\xfe", b"\xfe\xff") else [*names, "utf-8-sig", "gb18030"]:
        try:
            text = data.decode(name)
            break
        except (UnicodeDecodeError, LookupError):
            continue
    if text is None:
        raise ValueError(f"{path}: seen bytes of no known encoding, expected an annotation file")
    if "<!ENTITY" in text:
        raise ValueError(f"{path}: seen an entity declaration, expected plain annotations")
    try:
        return ElementTree.fromstring(re.sub(r"^\ufeff?\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: seen broken XML ({error}), expected an annotation file") from None


def number_in(root: ElementTree.Element, path: str) -> int:
    """A side in whole pixels ("100", "100.0"); 0 where it is missing or no number."""
    try:
        return max(0, int(float(root.findtext(path, "0"))))
    except (ValueError, OverflowError):
        return 0


def corners(bounds: ElementTree.Element | None) -> tuple[float, ...]:
    """xmin, ymin, xmax, ymax of a bndbox; NaN for what is no number."""
    try:
        return tuple(
            float("nan" if bounds is None else bounds.findtext(side, "nan"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return (math.nan,) * 4


def _picture_name(file: Path, named: str, pictures: Pictures, stems: set[str]) -> str | None:
    """The picture of an annotation file; None, counted, where it names the picture of another annotation file."""
    named = named.replace("\\", "/")
    short = named.rsplit("/", 1)[-1]
    stem = Path(short).stem if Path(short).suffix.lower() in SUFFIXES else short
    if stem in ("", file.stem):
        return short or f"{file.stem}.jpg"
    if stem in stems:
        pictures.dropped.note("annotation files that name another one's picture", f"{file.name}: {named}")
        return None
    places = (pictures.near, pictures) if pictures.folder is not None else ()
    if any(place.find(named) is None and place.find(f"{file.stem}.jpg") for place in places):
        reason = "annotation files whose picture was renamed with them (taken by the file's name)"
        pictures.dropped.note(reason, f"{file.name}: {named}", stops=False)
        return f"{file.stem}.jpg"
    return named


def _photo(
    file: Path,
    key: str,
    pictures: Pictures,
    tasks: tuple[str, ...],
    subset: Subset | None,
    difficult: bool,
    year: str,
    stems: set[str],
) -> Iterator[Sample]:
    dropped = pictures.dropped
    root = parse_xml(file)
    size = (number_in(root, "size/width"), number_in(root, "size/height"))
    objects, names = [], []
    for number, one in enumerate(root.findall("object")):
        if not difficult and one.findtext("difficult", "0") == "1":
            continue
        if called := " ".join(clean(one.findtext("name") or "").split()):
            objects.append(one)
            names.append(called)
        else:
            dropped.note(BAD_ROW, f"{file.name} object {number}: no name")
    spelled = {name.casefold(): name for name in reversed(names)}
    names = [spelled[name.casefold()] for name in names]
    if subset is not None and not subset.holds(names, [False] * len(names)):
        dropped.note(f"photos with no or more than {subset.max_objects} {subset.count_by}", file.stem, stops=False)
        return
    dropped.in_subset += subset is not None
    name = _picture_name(file, (root.findtext("filename") or "").strip(), pictures, stems)
    known = None if name is None else pictures.get(name, size if all(size) else None)
    if known is None:
        return
    regions = []
    for number, (one, name) in enumerate(zip(objects, names, strict=True)):
        x1, y1, x2, y2 = corners(one.find("bndbox"))
        where = f"{file.name} object {number}"
        box = dropped.box((x1 - 1, y1 - 1, x2, y2), (known[0].width, known[0].height), where)
        if box is None:
            continue
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        regions.append(SampleRegion(phrase=name, category=name, area_px=area, box=box))
    yield from questions(f"voc-{year}", key, known, regions, names, tasks, dropped, file.stem)
