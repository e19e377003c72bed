"""V*Bench: multiple choice about small things in large pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

_CHOICE = re.compile(r"^\(([A-Z])\) *(.+?) *$", re.MULTILINE)


def read(path: str | Path, pictures: Pictures | None = None, template: str | None = None) -> Iterator[Sample]:
    """One question a line of test_questions.jsonl; `path` is its folder (pictures beside it), or the file.

    `text` holds the options as lines "(A) ..." and `label` the right one's letter. The folders' own JSON files list the
    right option first, and the paper ranks options by their likelihood: no order to ask in, so they are not read.
    """
    file, folder = located(path, "test_questions.jsonl")
    here = (pictures or Pictures()).under(folder, ".")
    for row in rows(file, ("question_id", "image", "text", "category", "label"), "V*Bench's lines"):
        with here.dropped.row(f"{file.name} question {name_of(row, 'question_id')}"):
            known = here.get(row["image"])
            if known is None:
                continue
            choices = [match[2] for match in _CHOICE.finditer(row["text"])]
            answer = "ABCDEFGHIJ".find(row["label"].strip())
            if not 0 <= answer < len(choices):
                raise ValueError(f"seen the label {row['label']!r} and {len(choices)} options, expected one of them")
            fields: dict[str, Any] = {"choices": choices, "subtask": row["category"]}
            fields["meta"] = {"question_id": row["question_id"], "category": row["category"]}
            asked = row["text"].split("(A)")[0].strip()
            yield question("vstar", f"vstar-{row['question_id']}", known, asked, [choices[answer]], template, **fields)
