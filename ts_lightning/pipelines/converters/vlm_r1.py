"""VLM-R1's problem/solution rows: an expression, a box in pixels, or none where nothing fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.pipelines.converters.files import rows
from ts_lightning.pipelines.converters.source import NO_BOX, Pictures, clean, make, to_box


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One sample a row; `path` is the JSON (or JSON lines) file, or a folder of such files.

    `solution` null is a question about something that is not there: tagged negative, no answer box. The picture's size
    comes from the row or, without it, from the picture.
    """
    path, pictures = Path(path), pictures or Pictures()
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *.json or *.jsonl, expected problem/solution files in it")
    here = pictures.under(path if path.is_dir() else path.parent, "val2017", "train2017", "train2014", "images")
    for file in files:
        for number, row in enumerate(rows(file, ("image", "problem", "solution"), "problem/solution rows")):
            with here.dropped.row(f"{file.name} row {number}"):
                if (made := _row(file.stem, number, row, here)) is not None:
                    yield made


def _row(stem: str, number: int, row: dict[str, Any], pictures: Pictures) -> Sample | None:
    size = (int(row["width"]), int(row["height"])) if row.get("width") and row.get("height") else None
    known = pictures.get(row["image"], size)
    if known is None:
        return None
    phrase = clean(row["normal_caption"]) if "normal_caption" in row else None
    meta: dict[str, Any] = {"row": number, "categories": row.get("categories")}
    fields: dict[str, Any] = {"task": "grounding", "subtask": "rec", "meta": meta}
    key = f"{stem}-{number:05d}"
    if row["solution"] is None:
        text = "This question is invalid."
        fields |= {"tags": ["negative"], "answer": Answer(), "subtask": "negative"}
        meta["phrase"] = phrase
        return make(row.get("dataset", stem), key, [known], [(clean(row["problem"]), text)], **fields)
    corners = row["solution"]
    box = to_box(corners, (known[0].width, known[0].height)) if isinstance(corners, list) else None
    if box is None:
        pictures.dropped.note(NO_BOX, f"{stem} row {number}")
        return None
    area = float((corners[2] - corners[0]) * (corners[3] - corners[1]))
    fields |= {"regions": [SampleRegion(phrase=phrase, area_px=area, box=box)], "answer": [0]}
    return make(row.get("dataset", stem), key, [known], [(clean(row["problem"]), "{region:0}")], **fields)
