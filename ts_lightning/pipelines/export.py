"""Samples back out in other tools' formats: COCO JSON, LLaVA JSON, ms-swift JSON lines."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import REGION_MARK, Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.region_text import region_text
from ts_lightning.grounding.steps import step_cuts
from ts_lightning.pipelines.converters.conversation import fingerprint
from ts_lightning.pipelines.converters.source import Dropped


def to_llava(samples: Iterable[Sample], out: Path, codec: Codec) -> int:
    """Write LLaVA's JSON list and the pictures (out/images); returns the number of rows.

    Regions are written in `codec`, in answers with what a model here would be trained on: the phrase, the number of the
    picture, where the notation says them. `images` lists the pictures, `image` names a single one too (LLaVA). The key
    `ts_lightning`, one JSON string that other tools pass over, keeps the record, so that `converters.llava` gives back
    equal samples of rows that nobody edited. dataset_info.json is LLaMA-Factory's entry: its dataset_dir is `out`.
    """
    rows = []
    saved: dict[str, str] = {}
    for sample in samples:
        names = _save_pictures(sample, out / "images", saved)
        texts = _written(sample, codec)
        pairs = zip(sample.turns, texts, strict=True)
        row: dict[str, Any] = {"id": sample.id}
        if names:
            row["images"] = [f"images/{name}" for name in names]
            if len(names) == 1:
                row["image"] = f"images/{names[0]}"
        row["conversations"] = [{"from": "human" if turn.role == "user" else "gpt", "value": t} for turn, t in pairs]
        rows.append(row | {"ts_lightning": _kept(sample, texts)})
    _write(out / "llava.json", json.dumps(rows, ensure_ascii=False, indent=1))
    columns = {"messages": "conversations", "images": "images"}
    entry = {"file_name": "llava.json", "formatting": "sharegpt", "columns": columns}
    _write(out / "dataset_info.json", json.dumps({"ts_lightning": entry}, indent=1))
    return len(rows)


def to_ms_swift(samples: Iterable[Sample], out: Path) -> int:
    """Write ms-swift's JSON lines and the pictures (out/images); returns the number of rows.

    Pictures are named by their whole path, since ms-swift looks from the folder that it runs in. Boxes are `<bbox>`
    with bbox_type norm1, and a phrase that stands before them `<ref-object>`: ms-swift writes both in each model's own
    form. It has points and boxes only: ValueError for a polygon.
    """
    count = 0
    saved: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "ms_swift.jsonl", "w", encoding="utf-8") as file:
        for sample in samples:
            names = _save_pictures(sample, out / "images", saved)
            texts, objects = with_placeholders(sample)
            messages = [{"role": turn.role, "content": t} for turn, t in zip(sample.turns, texts, strict=True)]
            row: dict[str, Any] = {
                "messages": messages,
                "images": [str((out / "images" / name).resolve()) for name in names],
            }
            if objects["bbox"]:
                row["objects"] = objects
            file.write(json.dumps(row | {"ts_lightning": _kept(sample, texts)}, ensure_ascii=False) + "\n")
            count += 1
    return count


def to_coco(samples: Iterable[Sample], out: Path, split: str = "export", dropped: Dropped | None = None) -> int:
    """Write COCO's folder: annotations/instances_SPLIT.json, captions_SPLIT.json, SPLIT/ with the photos.

    Every box of a region with a category is an annotation, once by its id or by category and box; regions without
    either are counted in `dropped`. Captions are the answers of caption questions. Ids are those of `meta` where they
    are numbers that nothing before has, else new ones. Returns the number of photos.
    """
    dropped = Dropped() if dropped is None else dropped
    photos: dict[str, dict[str, Any]] = {}
    objects: dict[str, dict[Any, dict[str, Any]]] = {}
    captions: dict[str, list[str]] = {}
    names: dict[str, Any] = {}
    saved: dict[str, str] = {}
    for sample in samples:
        meta = sample.meta or {}
        if len(sample.images) != 1:
            raise ValueError(f"{sample.where}: seen {len(sample.images)} pictures, expected one (COCO's format)")
        image = sample.images[0]
        (name,) = _save_pictures(sample, out / split, saved)
        if name not in photos:
            size = {"width": image.width, "height": image.height}
            photos[name] = {"id": meta.get("image_id"), "file_name": name} | size
            objects[name], captions[name] = {}, []
        if sample.subtask == "caption" and sample.task == "understanding":
            captions[name] += [text for text in sample.answers or [] if text not in captions[name]]
        categories = meta.get("category_ids") or [None] * len(sample.regions)
        found: dict[Any, dict[str, Any]] = {}
        for region, ids, category in zip(sample.regions, _ids(sample, meta), categories, strict=True):
            if not region.all_boxes or region.category is None:
                dropped.note("regions without a box or a category", sample.where)
                continue
            if names.get(region.category) is None:
                names[region.category] = category
            for annotation, box in zip(ids, region.all_boxes, strict=True):
                key = (annotation, region.category, box)
                found[key] = _annotation(region, box, annotation, image.width, image.height)
        # The record of all objects has the order of the annotations.
        listing, rest = (found, objects[name]) if len(sample.regions) > 1 else (objects[name], found)
        objects[name] = listing | {key: one for key, one in rest.items() if key not in listing}
    _write_coco(out, split, photos, objects, captions, names)
    return len(photos)


def _ids(sample: Sample, meta: dict[str, Any]) -> list[list[Any]]:
    """The annotation ids of each region's boxes: `meta` has one a region, or one a box; None where it has none."""
    counts = [len(region.all_boxes) for region in sample.regions]
    ids = meta.get("annotation_ids") or [meta.get("annotation_id")] * len(counts)
    if len(ids) == len(counts):  # one id can't stand for several boxes
        return [[one] if count == 1 else [None] * count for one, count in zip(ids, counts, strict=True)]
    if len(ids) != sum(counts):
        expected = f"one a region ({len(counts)}) or a box ({sum(counts)})"
        raise ValueError(f"{sample.where}: meta.annotation_ids: seen {len(ids)}, expected {expected}")
    rest = iter(ids)
    return [[*islice(rest, count)] for count in counts]


def _annotation(region: SampleRegion, box: Box, number: Any, width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    bbox = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
    area = bbox[2] * bbox[3] if region.area_px is None or len(region.all_boxes) > 1 else region.area_px
    return {"id": number, "bbox": bbox, "area": area, "iscrowd": region.iscrowd, "name": region.category}


def _write_coco(
    out: Path,
    split: str,
    photos: dict[str, dict[str, Any]],
    objects: dict[str, dict[Any, dict[str, Any]]],
    captions: dict[str, list[str]],
    names: dict[str, Any],
) -> None:
    for photo, number in zip(photos.values(), _numbered([photo["id"] for photo in photos.values()]), strict=True):
        photo["id"] = number
    categories = dict(zip(names, _numbered(names.values()), strict=True))
    notes: list[dict[str, Any]] = []
    for name, found in objects.items():
        for one in found.values():
            category = categories[one.pop("name")]
            notes.append(one | {"image_id": photos[name]["id"], "category_id": category})
    for note, number in zip(notes, _numbered([note["id"] for note in notes]), strict=True):
        note["id"] = number
    data = {
        "images": list(photos.values()),
        "annotations": notes,
        "categories": [{"id": n, "name": name} for name, n in sorted(categories.items(), key=lambda one: one[1])],
    }
    _write(out / "annotations" / f"instances_{split}.json", json.dumps(data, ensure_ascii=False))
    said = [(photos[name]["id"], text) for name, texts in captions.items() for text in texts]
    if said:
        rows = [{"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(said, 1)]
        data = {"images": list(photos.values()), "annotations": rows}
        _write(out / "annotations" / f"captions_{split}.json", json.dumps(data, ensure_ascii=False))


def _numbered(known: Collection[Any]) -> list[int]:
    """The known ids where they are numbers, each at its first place alone; elsewhere numbers that none of them is.

    Two splits, or two data sets, have the same ids for other things.
    """
    numbers, used, out = {one for one in known if type(one) is int}, set(), []
    fresh = (n for n in count(1) if n not in numbers)
    for one in known:
        number = one if type(one) is int and one not in used else next(fresh)
        used.add(number)
        out.append(number)
    return out


def with_placeholders(sample: Sample) -> tuple[list[str], dict[str, Any]]:
    """The texts of a sample with ms-swift's `<ref-object>` and `<bbox>`, and the objects that they stand for.

    A phrase is an object's name where its words stand right before the region: the text says the same to every model.
    """
    objects: dict[str, Any] = {"ref": [], "bbox": [], "bbox_type": "norm1", "image_id": []}
    texts = []
    for turn in sample.turns:
        text, at = "", 0
        for match in REGION_MARK.finditer(turn.text):
            before, region = turn.text[at : match.start()], sample.regions[int(match[1])]
            if (start := _phrase_ending(before, region.phrase)) is not None:
                blank = before[start + len(str(region.phrase)) :]
                before = f"{before[:start]}<ref-object>{blank}"
                objects["ref"].append(region.phrase)
            boxes = _norm1(sample, int(match[1]))
            objects["bbox"] += boxes
            objects["image_id"] += [region.image] * len(boxes)
            text += before + "<bbox>" * len(boxes)
            at = match.end()
        texts.append(text + turn.text[at:])
    return texts, objects


def _phrase_ending(text: str, phrase: str | None) -> int | None:
    """Where the phrase begins that a text ends with, blanks behind it; None where it does not."""
    words = text.rstrip()
    start = len(words) - len(phrase or "")
    return start if phrase and words.endswith(phrase) and not words[:start][-1:].isalnum() else None


def _written(sample: Sample, codec: Codec) -> list[str]:
    """The texts with what `codec` writes for `{region:i}`, as `models.encode` writes it."""
    texts: list[str] = []
    mentioned: set[int] = set()
    for turn in sample.turns:
        answer = turn.role == "assistant"
        cuts = step_cuts(turn.text, turn.steps) if answer else [0]
        text = ""
        for start, end in zip(cuts, [*cuts[1:], None], strict=True):
            piece, at = turn.text[start:end], 0
            for match in REGION_MARK.finditer(piece):
                around = (piece[: match.start()], piece[match.end() :])
                try:
                    written = region_text(codec, sample, int(match[1]), *around, mentioned if answer else None)
                except ValueError as error:
                    raise ValueError(f"{sample.where}: {error}") from None
                text += piece[at : match.start()] + written
                at = match.end()
            text += piece[at:]
        texts.append(text)
    return texts


def _norm1(sample: Sample, i: int) -> list[list[float]]:
    region = sample.regions[i]
    if region.polygon is not None or (region.points is not None and len(region.points) > 2):
        raise ValueError(f"{sample.where}: region {i}: seen a polygon, expected a point or a box (ms-swift's bbox)")
    if region.points is not None:
        return [[v for point in region.points for v in point]]
    return [list(box) for box in region.boxes or ([region.box] if region.box else [])]


def _kept(sample: Sample, texts: list[str]) -> str:
    """The record without its pictures, its key, and what tells whether the row's `texts` were edited since, as JSON.

    A string, since a table of rows (`datasets`) takes one type for each key.
    """
    fields = asdict(sample.without_bytes())
    for name in ("images", "shard", "image_bytes", "after_question"):
        del fields[name]
    return json.dumps(fields | {"written": fingerprint(texts)}, ensure_ascii=False)


def _save_pictures(sample: Sample, folder: Path, saved: dict[str, str]) -> list[str]:
    """Save the pictures and return their names: their own, behind which others of one name get a hash of their bytes.

    Pictures of two folders (site_a/0001.jpg, site_b/0001.jpg) have one name in the records. `saved` has the names of
    this export and the hashes of their bytes; what an earlier one left under such a name is written over.
    """
    if len(sample.image_bytes) != len(sample.images):
        raise ValueError(f"{sample.where}: seen {len(sample.image_bytes)} pictures, expected {len(sample.images)}")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for image, data in zip(sample.images, sample.image_bytes, strict=True):
        if Path(image.name).name != image.name or image.name in (".", ".."):
            raise ValueError(f"{sample.where}: seen the picture name {image.name!r}, expected a plain file name")
        path, digest = folder / image.name, sha256(data).hexdigest()
        if saved.get(path.name, digest) != digest:
            path = path.with_stem(f"{path.stem}-{digest[:8]}")
        if path.name not in saved:
            path.write_bytes(data)
            saved[path.name] = digest
        names.append(path.name)
    return names


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
