"""RefCOCO, RefCOCO+ and RefCOCOg in their three layouts: refs pickle, MDETR json, split files of TransVG and ReSC."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import Broken, listed, load_json, mapped, name_of, plain_pickles
from ts_lightning.pipelines.converters.source import (
    LeftOut,
    Pictures,
    by_id,
    clean,
    files_of,
    from_xywh,
    grounding,
    need,
    whole,
)

LARGEST = (640, 640)  # no COCO picture is larger; for split files without the pictures, which don't say sizes
FOLDERS = ("train2014", "images/train2014", "images/mscoco/images/train2014", "train2017", "val2014")


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, split_by: str | None = None
) -> Iterator[Sample]:
    """One question for each expression.

    `path` is a split file (`.pth`), an MDETR file (`.json`), or a folder with `refs(SPLIT_BY).p` and `instances.json`,
    where `split` chooses val, testA, ... (None: all). `meta.question_id` is COCO's id of the object,
    which its expressions share. The text is the file's, byte for byte. A split file says no picture sizes: without the
    pictures boxes are in fractions of 640 x 640 and `meta.size_known` is false.
    """
    path, pictures = Path(path), pictures or Pictures()
    if path.is_dir():
        return _from_refs(path, pictures.under(path, *FOLDERS), split, split_by)
    return _from_mdetr(path, pictures) if path.suffix == ".json" else _from_split(path, pictures)


def _from_split(path: Path, pictures: Pictures) -> Iterator[Sample]:
    rows = plain_pickles(path, 4)[3]  # torch's legacy form: magic, protocol, system, then the list
    if not isinstance(rows, list) or not any(isinstance(row, tuple) and len(row) >= 4 for row in rows):
        raise ValueError(f"{path}: seen no list of (image, id, box, phrase), expected a RefCOCO split file")
    source = path.stem
    for number, row in enumerate(rows):
        with pictures.dropped.row(f"{path.name} row {number}"):
            name, annotation, xywh, phrase, *_ = row
            known = pictures.get(name, None if pictures.folder else LARGEST)
            if known is None:
                continue
            size = (known[0].width, known[0].height)
            if (box := pictures.dropped.box(from_xywh(xywh), size, f"{path.name} row {number}")) is None:
                continue
            meta = {"question_id": str(annotation), "annotation": annotation, "bbox": list(xywh)}
            meta["size_known"] = pictures.folder is not None
            yield grounding(source, f"{source}-{number:06d}", known, clean(phrase), box, meta=meta)


def _from_mdetr(path: Path, pictures: Pictures) -> Iterator[Sample]:
    what = "MDETR's images (caption, file_name) and annotations"
    data = mapped(load_json(path, what), path, what)
    images = listed(data.get("images"), path, ("id", "file_name", "caption"), what)
    notes = whole(listed(data.get("annotations"), path, ("image_id", "bbox"), what), path, pictures.dropped)
    boxes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for one in notes:
        with pictures.dropped.row(f"{path.name} annotation {one.get('id')}"):
            boxes[one["image_id"]].append(one)
    pictures.naming(image["file_name"] for image in images if not isinstance(image, Broken))
    for image in images:
        with pictures.dropped.row(f"{path.name} image {name_of(image, 'id')}"):
            size = (image["width"], image.get("height")) if "width" in image else None
            known, found = pictures.get(image["file_name"], size), boxes.get(image["id"], [])
            if known is None:
                continue
            if len(found) != 1:
                raise LeftOut("expressions with several boxes" if found else "expressions without a box")
            (one,), size = found, (known[0].width, known[0].height)
            box = pictures.dropped.box(from_xywh(one["bbox"]), size, f"image {image['id']}")
            if box is None:
                continue
            source = image.get("dataset_name", path.stem)
            meta = {"image_id": image.get("original_id"), "annotation_id": one.get("original_id")}
            meta["question_id"] = str(one.get("original_id", image["id"]))
            key = f"{source}-{path.stem}-{image['id']}"
            yield grounding(source, key, known, clean(image["caption"]), box, area_px=one.get("area"), meta=meta)


def _from_refs(folder: Path, pictures: Pictures, split: str | None, split_by: str | None) -> Iterator[Sample]:
    refs_file = need(folder, f"refs({split_by or '*'}).p")
    choices = [file.stem.removeprefix("refs(").removesuffix(")") for file in files_of(folder, "refs(*).p")]
    if split_by is None and len(choices) > 1:
        raise ValueError(f"{folder}: seen the refs of {', '.join(choices)}, expected --split-by with one of them")
    split_by = refs_file.stem.removeprefix("refs(").removesuffix(")")
    refs: list[dict[str, Any]] = listed(
        plain_pickles(refs_file, 1)[0], refs_file, ("image_id", "ann_id", "split", "sentences"), "REFER's refs"
    )
    what = "COCO's images, annotations and categories"
    path = folder / "instances.json"
    instances = mapped(load_json(path, what), path, what)

    def items(name: str, *keys: str) -> dict[Any, dict[str, Any]]:
        found = listed(instances.get(name), path, ("id", *keys), what)
        return by_id(found, "id", path, pictures.dropped)

    images, objects = items("images", "file_name"), items("annotations", "bbox")
    names = {number: one["name"] for number, one in items("categories", "name").items()}
    splits = {str(ref["split"]) for ref in refs if not isinstance(ref, Broken)}
    if split is not None and split not in splits:
        known_splits = ", ".join(sorted(splits))
        raise ValueError(f"{refs_file}: seen the split {split!r}, expected one of {known_splits}")
    for ref in refs:
        with pictures.dropped.row(f"{refs_file.name} ann_id {name_of(ref, 'ann_id')}"):
            if split is not None and ref["split"] != split:
                continue
            image, one = images.get(ref["image_id"]), objects.get(ref["ann_id"])
            if image is None or one is None:
                pictures.dropped.note("expressions whose image or annotation is not in instances.json", ref["ann_id"])
                continue
            known = pictures.get(image["file_name"], (image.get("width"), image.get("height")))
            if known is None:
                continue
            size, where = (known[0].width, known[0].height), f"annotation {ref['ann_id']}"
            if (box := pictures.dropped.box(from_xywh(one["bbox"]), size, where)) is None:
                continue
            for place, sentence in enumerate(ref["sentences"]):
                with pictures.dropped.row(f"{refs_file.name} ann_id {ref['ann_id']} sentence {place}"):
                    key = f"{folder.name}-{sentence['sent_id']}"
                    fields = {"category": names.get(one.get("category_id")), "area_px": one.get("area")}
                    meta = {"ref_id": ref.get("ref_id"), "ann_id": ref["ann_id"], "split": ref["split"]}
                    meta |= {"split_by": split_by, "question_id": str(ref["ann_id"])}
                    yield grounding(folder.name, key, known, clean(sentence["sent"]), box, meta=meta, **fields)
