"""PASCAL VOC: one XML file a photo, boxes counted from 1."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.coco import Subset
from ts_lightning.pipelines.converters.source import NO_BOX, Pictures, make, need, pick, safe_key, to_box

TASKS = ("localization", "detection")


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    tasks: tuple[str, ...] | None = None,
    max_objects: int | None = None,
    count_by: str = "instances",
    difficult: bool = True,
) -> Iterator[Sample]:
    """Samples of `path`, a VOC year's folder (Annotations, JPEGImages, ImageSets/Main).

    `split` names a list of ImageSets/Main (test); None takes every annotation file. Pixel 1 is VOC's first: a box is
    xmin - 1, ymin - 1, xmax, ymax. `max_objects` as in COCO's `Subset`; `difficult` False leaves those objects out.
    """
    folder, pictures = Path(path), pictures or Pictures()
    if (folder / "VOCdevkit").is_dir():
        raise ValueError(f"{folder}: seen VOCdevkit, expected one year's folder in it (VOCdevkit/VOC2007)")
    need(folder, "Annotations/*.xml")
    here = pictures.under(folder, "JPEGImages")
    subset = None if max_objects is None else Subset(max_objects, count_by, "ignore")
    wanted = tasks or (TASKS if subset is None else TASKS[:1])
    names = None
    if split is not None:
        names = [
            line.split()[0] for line in need(folder, f"ImageSets/Main/{split}.txt").read_text().splitlines() if line
        ]
    files = sorted((folder / "Annotations").glob("*.xml"))
    if names is not None:
        files = [folder / "Annotations" / f"{name}.xml" for name in names]
    here.without_annotations([file.with_suffix(".jpg").name for file in files] if split is None else _all(here))
    for file in files:
        if not file.is_file():
            here.dropped.note("names of the split without an annotation file", file.stem)
            continue
        yield from _photo(file, here, wanted, subset, difficult, folder.name)


def _all(pictures: Pictures) -> list[str]:
    return [path.name for path in (pictures.folder / "JPEGImages").glob("*")] if pictures.folder else []


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; ValueError with the line where it breaks. Entities are refused."""
    data = path.read_bytes()
    if b"<!ENTITY" in data:
        raise ValueError(f"{path}: seen an entity declaration, expected plain annotations")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: seen broken XML ({error}), expected an annotation file") from None


def _photo(
    file: Path, pictures: Pictures, tasks: tuple[str, ...], subset: Subset | None, difficult: bool, year: str
) -> Iterator[Sample]:
    dropped = pictures.dropped
    root = parse_xml(file)
    size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
    objects = [one for one in root.findall("object") if difficult or one.findtext("difficult", "0") != "1"]
    names = [one.findtext("name", "object") for one in objects]
    if subset is not None and not subset.holds(names, [False] * len(names)):
        dropped.note(f"photos with no or more than {subset.max_objects} {subset.count_by}", file.stem, stops=False)
        return
    dropped.in_subset += subset is not None
    known = pictures.get(root.findtext("filename", f"{file.stem}.jpg"), size if all(size) else None)
    if known is None:
        return
    regions = []
    for number, (one, name) in enumerate(zip(objects, names, strict=True)):
        try:
            x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            x1 = y1 = x2 = y2 = float("nan")
        box = to_box((x1 - 1, y1 - 1, x2, y2), (known[0].width, known[0].height))
        if box is None:
            dropped.note(NO_BOX, f"{file.name} object {number}")
            continue
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        regions.append(SampleRegion(phrase=name, category=name, area_px=area, box=box))
    count = Counter(names)
    source = f"voc-{year}"
    for region in regions if "localization" in tasks else ():
        name = str(region.category)
        if count[name] > 1:
            reason = "objects of a category that occurs more than once in a photo (no localization question)"
            dropped.note(reason, f"{file.stem} {name}", stops=False)
            continue
        key = f"{safe_key(file.stem)}-{safe_key(name)}"
        question = pick("localization", key, phrase=name)
        fields = {"task": "grounding", "subtask": "localization", "regions": [region], "answer": [0]}
        yield make(source, key, [known], [(question, "{region:0}")], meta={"image_id": file.stem}, **fields)
    if "detection" in tasks and regions:
        key = f"{safe_key(file.stem)}-objects"
        said = ", ".join(f"{region.category} {{region:{i}}}" for i, region in enumerate(regions)) + "."
        fields = {"task": "grounding", "subtask": "detection", "regions": regions, "answer": [*range(len(regions))]}
        yield make(source, key, [known], [(pick("detection", key), said)], meta={"image_id": file.stem}, **fields)
