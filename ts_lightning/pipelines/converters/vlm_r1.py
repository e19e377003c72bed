"""VLM-R1's problem/solution rows: an expression, a box in pixels, or none where nothing fits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.pipelines.converters.files import Broken, rows
from ts_lightning.pipelines.converters.source import Pictures, clean, files_of, make, stems


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One sample a row; `path` is the JSON (or JSON lines) file, or a folder of such files.

    `solution` is one box or a list of boxes; null or an empty list is a question about something that is not there:
    tagged negative, no answer box. The picture's size comes from the row or, without it, from the picture.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = files_of(path, "*.json", "*.jsonl") if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.json or *.jsonl, expected problem/solution files in it")
    named = stems(files)
    here = pictures.under(path if path.is_dir() else path.parent, "val2017", "train2017", "train2014", "images")
    for file in files:
        here.naming(row["image"] for row in rows(file, (), "") if not isinstance(row, Broken) and "image" in row)
        for number, row in enumerate(rows(file, ("image", "problem", "solution"), "problem/solution rows")):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(named[file], number, row, here)) is not None:
                    yield made


def _row(stem: str, number: int, row: dict[str, Any], pictures: Pictures) -> Sample | None:
    size = (row["width"], row["height"]) if "width" in row and "height" in row else None
    known = pictures.get(row["image"], size)
    if known is None:
        return None
    phrase = clean(row["normal_caption"]) if "normal_caption" in row else None
    meta: dict[str, Any] = {"row": number, "categories": row.get("categories")}
    fields: dict[str, Any] = {"task": "grounding", "subtask": "rec", "meta": meta}
    key = f"{stem}-{number:05d}"
    solution = json.loads(row["solution"]) if isinstance(row["solution"], str) else row["solution"]
    if solution in (None, []):
        text = "This question is invalid."
        fields |= {"tags": ["negative"], "answer": Answer(), "subtask": "negative"}
        meta["phrase"] = phrase
        return make(row.get("dataset", stem), key, [known], [(clean(row["problem"]), text)], **fields)
    several = solution if isinstance(solution[0], list) else [solution]
    size = (known[0].width, known[0].height)
    boxes = [pictures.dropped.box(corners, size, f"{stem} row {number}") for corners in several]
    if None in boxes:
        return None
    area = float(sum((corners[2] - corners[0]) * (corners[3] - corners[1]) for corners in several))
    place: dict[str, Any] = {"box": boxes[0]} if len(boxes) == 1 else {"boxes": boxes}
    fields |= {"regions": [SampleRegion(phrase=phrase, area_px=area, **place)], "answer": [0]}
    return make(row.get("dataset", stem), key, [known], [(clean(row["problem"]), "{region:0}")], **fields)
