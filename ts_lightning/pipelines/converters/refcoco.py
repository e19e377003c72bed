"""RefCOCO, RefCOCO+ and RefCOCOg in their three layouts: refs pickle, MDETR json, split files of TransVG and ReSC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.source import (
    Pictures,
    clean,
    from_xywh,
    grounding,
    listed,
    load_json,
    plain_pickles,
    to_box,
)

LARGEST = (640, 640)  # no COCO picture is larger; for split files without the pictures, which don't say sizes


def read(path: str | Path, pictures: Pictures | None = None, split: str | None = None) -> Iterator[Sample]:
    """One question for each expression.

    `path` is a split file (`.pth`), an MDETR file (`.json`), or a folder with `refs(SPLIT_BY).p` and `instances.json`,
    where `split` chooses val, testA, ... (None: all).
    """
    path, pictures = Path(path), pictures or Pictures()
    if path.is_dir():
        return _from_refs(path, pictures, split)
    return _from_mdetr(path, pictures) if path.suffix == ".json" else _from_split(path, pictures)


def _from_split(path: Path, pictures: Pictures) -> Iterator[Sample]:
    rows = plain_pickles(path, 4)[3]  # torch's legacy form: magic, protocol, system, then the list
    if not isinstance(rows, list) or not all(isinstance(row, tuple) and len(row) >= 4 for row in rows):
        raise ValueError(f"{path}: seen no list of (image, id, box, phrase), expected a RefCOCO split file")
    source = path.stem
    for number, (name, annotation, xywh, phrase, *_) in enumerate(rows):
        known = pictures.get(name, None if pictures.folder else LARGEST)
        if known is None:
            continue
        size = (known[0].width, known[0].height)
        if (box := to_box(from_xywh(xywh), size)) is None:
            pictures.dropped["boxes that are no box inside the picture"] += 1
            continue
        meta = {"annotation": annotation, "bbox": list(xywh), "size_known": pictures.folder is not None}
        yield grounding(source, f"{source}-{number:06d}", known, clean(phrase), box, meta=meta)


def _from_mdetr(path: Path, pictures: Pictures) -> Iterator[Sample]:
    what = "MDETR's images (caption, file_name) and annotations"
    data = load_json(path, what)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: seen a JSON {type(data).__name__}, expected {what}")
    images = listed(data.get("images"), path, ("id", "file_name", "caption"), what)
    boxes = {one["image_id"]: one for one in listed(data.get("annotations"), path, ("image_id", "bbox"), what)}
    for image in images:
        size = (image["width"], image["height"]) if "width" in image else None
        known, one = pictures.get(image["file_name"], size), boxes.get(image["id"])
        if known is None or one is None:
            pictures.dropped["expressions without a box"] += known is not None
            continue
        box = to_box(from_xywh(one["bbox"]), (known[0].width, known[0].height))
        if box is None:
            pictures.dropped["boxes that are no box inside the picture"] += 1
            continue
        source = image.get("dataset_name", path.stem)
        key = f"{source}-{image['id']}"
        yield grounding(source, key, known, clean(image["caption"]), box, area_px=one.get("area"))


def _from_refs(folder: Path, pictures: Pictures, split: str | None) -> Iterator[Sample]:
    (refs_file,) = sorted(folder.glob("refs(*).p"))[:1] or [folder / "refs(unc).p"]
    refs: list[dict[str, Any]] = plain_pickles(refs_file, 1)[0]
    what = "COCO's images, annotations and categories"
    instances = load_json(folder / "instances.json", what)
    images = {one["id"]: one for one in listed(instances.get("images"), folder, ("id", "file_name"), what)}
    objects = {one["id"]: one for one in listed(instances.get("annotations"), folder, ("id", "bbox"), what)}
    names = {one["id"]: one["name"] for one in listed(instances.get("categories"), folder, ("id", "name"), what)}
    for ref in refs:
        if split is not None and ref["split"] != split:
            continue
        image, one = images[ref["image_id"]], objects[ref["ann_id"]]
        known = pictures.get(image["file_name"], (image["width"], image["height"]))
        if known is None:
            continue
        box = to_box(from_xywh(one["bbox"]), (known[0].width, known[0].height))
        if box is None:
            pictures.dropped["boxes that are no box inside the picture"] += 1
            continue
        for sentence in ref["sentences"]:
            key = f"{folder.name}-{sentence['sent_id']}"
            fields = {"category": names.get(one.get("category_id")), "area_px": one.get("area")}
            meta = {"ref_id": ref["ref_id"], "ann_id": ref["ann_id"], "split": ref["split"]}
            yield grounding(folder.name, key, known, clean(sentence["sent"]), box, meta=meta, **fields)
