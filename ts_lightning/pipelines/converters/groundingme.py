"""GroundingME: long descriptions of one object, a fifth of which fit nothing in the picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.grounding.steps import REJECTION
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, all_located, clean, make, pick


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One question a row; `path` is the folder of its Parquet files (also below data/), or one of them.

    `bbox` is xyxy in pixels, null in the subtask Rejection. Pictures lie in the rows (`image.bytes`).
    """
    here, (files, _) = pictures or Pictures(), all_located(path, "*.parquet", "data/*.parquet")
    for file in files:
        for row in rows(file, ("id", "image", "description", "bbox", "subtask_l1"), "GroundingME's rows"):
            with here.dropped.row(f"{file.name} id {name_of(row, 'id')}"):
                if (made := _row(row, here)) is not None:
                    yield made


def _row(row: dict[str, Any], pictures: Pictures) -> Sample | None:
    key = f"groundingme-{row['id']}"
    known = pictures.inside(f"{key}.jpg", row["image"]["bytes"], row["image"].get("path"))
    if known is None:
        return None
    phrase = clean(row["description"])
    prompt = pick("referring", key, phrase=phrase)
    meta = {name: row.get(name) for name in ("subtask_l1", "subtask_l2", "detection_type")}
    meta["question_id"] = row["id"]
    fields: dict[str, Any] = {"task": "grounding", "subtask": row["subtask_l1"], "meta": meta}
    if row["subtask_l1"] == "Rejection":
        fields |= {"tags": ["negative"], "answer": Answer()}
        return make("groundingme", key, [known], [(prompt, REJECTION)], **fields)
    box = pictures.dropped.box(row["bbox"], (known[0].width, known[0].height), f"id {row['id']}")
    if box is None:
        return None
    fields |= {"regions": [SampleRegion(phrase=phrase, category=row.get("detection_type"), box=box)], "answer": [0]}
    return make("groundingme", key, [known], [(prompt, "{region:0}")], **fields)
