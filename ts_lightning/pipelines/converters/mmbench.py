"""MMBench: a table of multiple-choice questions with pictures inside, in base64."""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import Sample, SampleImage
from ts_lightning.pipelines.converters.files import table
from ts_lightning.pipelines.converters.source import Picture, Pictures, located
from ts_lightning.pipelines.converters.vqa import question


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, template: str | None = None
) -> Iterator[Sample]:
    """One sample a row of a TSV; `path` is the file, or the folder of it. `split` is dev or test, where a column says.

    An index above 1,000,000 is a rotation of the options of (index mod 1,000,000): rotations share `meta.question_id`.
    The column `image` may name another row whose picture is the same.
    """
    file, _ = located(path, "mmbench*.tsv", "MMBench*.tsv", "*.tsv")
    pictures = pictures or Pictures()
    seen: dict[str, Picture] = {}
    for row in table(file, ("index", "question", "A", "B", "image"), "MMBench's rows"):
        with pictures.dropped.row(f"{file.name} row {row.get('index')}"):
            if split is not None and row.get("split", split) != split:
                continue
            index, packed = row["index"], row["image"]
            if len(packed) <= 64 and packed in seen:
                known = seen[packed]
            else:
                try:
                    data = base64.b64decode(packed, validate=True)
                    extension, width, height = inspect_image(data)
                except (ValueError, binascii.Error):
                    pictures.dropped.note("pictures that can't be decoded", f"row {index}")
                    continue
                known = (SampleImage(f"{index}.{extension}", width, height), data)
            seen[index] = known
            choices = [row[letter] for letter in "ABCD" if row.get(letter) and row[letter] != "nan"]
            answer = row.get("answer", "")
            number = int(float(index)) % 1_000_000
            meta = {"question_id": number, "index": index, "category": row.get("category"), "split": row.get("split")}
            answers = [choices["ABCD".index(answer)]] if answer and "ABCD".find(answer) in range(len(choices)) else []
            hint = row.get("hint") or ""
            fields: dict[str, Any] = {
                "choices": choices,
                "hint": "" if hint == "nan" else hint,
                "subtask": "multiple_choice",
                "meta": meta,
            }
            yield question("mmbench", f"mmbench-{index}", known, row["question"], answers, template, **fields)
