"""ms-swift's JSON lines: messages with <bbox> placeholders and objects with boxes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleRegion
from ts_lightning.pipelines.converters.conversation import (
    anew,
    answered,
    count_unread,
    exported,
    paired,
    restored,
    with_marks,
)
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.llava import every_name, row_files, row_pictures
from ts_lightning.pipelines.converters.source import Dropped, LeftOut, Pictures, clean, make, stems
from ts_lightning.pipelines.export import with_placeholders

SHORT = "rows with more <bbox> or <ref-object> than boxes or names"


def read(
    path: str | Path, pictures: Pictures | None = None, task: str = "grounding", split: str | None = None
) -> Iterator[Sample]:
    """One sample a row; `path` is the .jsonl file, a JSON list, a Parquet file, or a folder of them.

    `split` takes the files with this word in their names (train), and is needed where they are of several splits.

    `<bbox>` becomes a region mark and `<ref-object>` its text, both in the order of `objects`; bbox_type is real
    (pixels, the default) or norm1; two numbers are a point. Rows that `ts-lightning data export` wrote come back as
    they were; one whose texts or objects were edited since is read as any other.
    """
    path, pictures = Path(path), pictures or Pictures()
    what = "ms-swift's messages"
    files = row_files(path, what, split)
    named = stems(files)
    for file in files:
        here = pictures.beside(file.parent, every_name(file, what), "images")
        here.naming(every_name(file, what))
        for number, row in enumerate(rows(file, ("messages",), what)):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(f"{file.name} row {number}", named[file], number, row, here, task)) is not None:
                    yield made


def _row(where: str, stem: str, number: int, row: dict[str, Any], pictures: Pictures, task: str) -> Sample | None:
    key = f"{stem}-{number:07d}"
    known = row_pictures(row, pictures, key)
    if known is None:
        return None
    objects = row.get("objects") or {}
    objects = json.loads(objects) if isinstance(objects, str) else objects
    if (kept := exported(row)) is not None:
        made = restored(kept, [turn["content"] for turn in row["messages"]], known)
        if made is not None and _same(objects, with_placeholders(made)[1]):
            return made
        pictures.dropped.note(anew(kept), where, stops=False)
    if row.get("videos") or row.get("audios"):
        raise LeftOut("rows with video or sound (pictures alone can be trained on)")
    texts = paired([(turn["role"], _text(turn["content"])) for turn in row["messages"]], row.get("system"))
    texts = with_marks(texts, len(known), where, pictures.dropped)
    filled = _fill(texts, objects, known, where, pictures.dropped)
    if filled is None:
        return None
    marked, regions = filled
    if not regions:
        count_unread(marked, where, pictures.dropped)
    pairs = list(zip(marked[::2], marked[1::2], strict=True))
    fields: dict[str, Any] = {"task": task if regions else "understanding", "subtask": "conversation"}
    return make(stem, key, known, pairs, regions=regions, answer=answered(marked), **fields)


def _same(objects: dict[str, Any], written: dict[str, Any]) -> bool:
    """Whether the objects are those that were written; a table's reader may be off in a number's last bit."""
    both = (objects.get("bbox") or [], written["bbox"])
    found, expected = ([number for box in boxes for number in (len(box), *box)] for boxes in both)
    return (
        all((objects.get(name) or []) == written[name] for name in ("ref", "image_id"))
        and (not expected or objects.get("bbox_type") == written["bbox_type"])
        and len(found) == len(expected)
        and all(math.isclose(one, two, abs_tol=1e-9) for one, two in zip(found, expected, strict=True))
    )


def _text(content: Any) -> Any:
    """The text of a message, also where it comes in parts, a picture among them."""
    if not isinstance(content, list):
        return content
    kinds = {"image": IMAGE_MARK, "image_url": IMAGE_MARK, "video": "<video>", "audio": "<audio>"}
    return "".join(part["text"] if part["type"] == "text" else kinds[part["type"]] for part in content)


def _fill(
    texts: list[str], objects: dict[str, Any], pictures: list[Any], where: str, dropped: Dropped
) -> tuple[list[str], list[SampleRegion]] | None:
    """Texts with marks and names in place of the placeholders, and the regions; None, counted, for a bad box.

    LeftOut where there are more placeholders than boxes or names; boxes that no placeholder names are counted.
    """
    refs, boxes = list(objects.get("ref") or []), list(objects.get("bbox") or [])
    which = objects.get("image_id") or [0] * len(boxes)
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1") or len(which) != len(boxes):
        seen = f"bbox_type {kind!r}, {len(boxes)} boxes, {len(which)} image_id"
        raise ValueError(f"seen {seen}, expected real or norm1 and a picture for each box")
    marks, named = (sum(text.count(mark) for text in texts) for mark in ("<bbox>", "<ref-object>"))
    if marks > len(boxes) or named > len(refs):
        raise LeftOut(SHORT, f"{marks} <bbox>, {len(boxes)} boxes; {named} <ref-object>, {len(refs)} names")
    if marks < len(boxes) or named < len(refs):
        dropped.note("rows with boxes or names that no placeholder stands for (kept)", where, stops=False)
    regions: list[SampleRegion] = []
    for numbers, image in zip(boxes, which, strict=True):
        if not 0 <= image < len(pictures):
            raise ValueError(f"seen image_id {image}, expected one of {len(pictures)} pictures")
        size = (pictures[image][0].width, pictures[image][0].height) if kind == "real" else (1, 1)
        if len(numbers) == 2:
            point = (numbers[0] / size[0], numbers[1] / size[1])
            regions.append(SampleRegion(image=image, points=[point]))
        elif (box := dropped.box(numbers, size, where)) is not None:
            regions.append(SampleRegion(image=image, box=box))
        else:
            return None
    out, box_at, ref_at = [], 0, 0
    for text in texts:
        while "<bbox>" in text or "<ref-object>" in text:
            ref, box_mark = text.find("<ref-object>"), text.find("<bbox>")
            if ref >= 0 and (box_mark < 0 or ref < box_mark):
                text, ref_at = text.replace("<ref-object>", clean(refs[ref_at]), 1), ref_at + 1
            else:
                text, box_at = text.replace("<bbox>", f"{{region:{box_at}}}", 1), box_at + 1
        out.append(text)
    return out, regions
