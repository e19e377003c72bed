"""Shikra's chain-of-thought files: questions and reasoning with boxes by index."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.source import LeftOut, Pictures, clean, files_of, make

START, END = "<ph_st>", "<ph_ed>"


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One sample a line (img_path, boxes, question, cot_with_ans, answer); `path` is the .jsonl, or a folder of them.

    A phrase between <ph_st> and <ph_ed> is followed by its boxes, pixels x1, y1, x2, y2 of the picture, which is
    needed for its size (a row may state width and height).
    """
    path, pictures = Path(path), pictures or Pictures()
    files = files_of(path, "*CoT*.jsonl") or files_of(path, "*.jsonl") if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.jsonl, expected Shikra's files in it")
    here = pictures.under(path if path.is_dir() else path.parent, "flickr30k-images", "flickr30k_images", "images")
    for file in files:
        keys = ("img_path", "boxes", "question", "cot_with_ans", "question_boxes_seq", "answer_boxes_seq")
        for number, row in enumerate(rows(file, keys, "Shikra's rows")):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(f"{file.stem}-{number}", row, here)) is not None:
                    yield made


def _row(key: str, row: dict[str, Any], pictures: Pictures) -> Sample | None:
    corners = [box for box in row["boxes"] if len(box) == 4]
    size = (row["width"], row["height"]) if "width" in row else None
    if size is None and pictures.folder is None:  # no size is known: the boxes' own extent
        size = (
            max((int(b[2]) + 1 for b in corners), default=1000),
            max((int(b[3]) + 1 for b in corners), default=1000),
        )
    known = pictures.get(row["img_path"], size)
    if known is None:
        return None
    boxes = [pictures.dropped.box(box, (known[0].width, known[0].height), key) for box in row["boxes"]]
    regions: list[SampleRegion] = []
    question = _marked(row["question"], row["question_boxes_seq"], boxes, regions)
    steps = None if question is None else _marked(row["cot_with_ans"], row["answer_boxes_seq"], boxes, regions)
    if None in boxes:
        return None
    if question is None or steps is None:
        raise LeftOut("rows whose phrases and boxes don't fit each other")
    answer = clean(row.get("answer", ""))
    meta = {"size_known": pictures.folder is not None or "width" in row}
    fields = {"task": "grounding", "subtask": "scout", "tags": ["cot"], "regions": regions, "meta": meta}
    return make("shikra_cot", key, [known], [(question, steps)], answer=answer or None, **fields)


def _marked(text: str, groups: list[list[int]], boxes: list[Any], regions: list[SampleRegion]) -> str | None:
    """The text with `{region:i}` behind each phrase; None where the groups do not fit the phrases or the boxes."""
    parts = clean(text).split(START)
    out, left = parts[0], list(groups or [])
    for part in parts[1:]:
        phrase, mark, rest = part.partition(END)
        if not mark or not left:
            return None
        which = left.pop(0)
        if any(not 0 <= i < len(boxes) for i in which):
            return None
        found = [boxes[i] for i in which]
        place = {"box": found[0]} if len(found) == 1 else {"boxes": found}
        regions.append(SampleRegion(phrase=phrase.strip(), **place))
        out += f"{phrase} {{region:{len(regions) - 1}}}{rest}"
    return None if left else out
