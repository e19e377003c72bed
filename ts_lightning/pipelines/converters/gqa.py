"""GQA: questions by id in one JSON object."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "GQA's questions by id"


def read(
    path: str | Path, pictures: Pictures | None = None, split: str = "testdev_balanced", template: str | None = None
) -> Iterator[Sample]:
    """One sample a question of SPLIT_questions.json; `path` is its folder (pictures in images/), or the file."""
    file, folder = located(path, f"{split}_questions.json", f"questions/{split}_questions.json")
    here = (pictures or Pictures()).under(folder, "images", "../images")
    for number, one in mapped(load_json(file, WHAT), file, WHAT).items():
        with here.dropped.row(f"{file.name} question {number}"):
            known = here.get(f"{one['imageId']}.jpg")
            if known is not None:
                meta = {"question_id": number, "types": one.get("types"), "full_answer": one.get("fullAnswer")}
                answers = [one["answer"]] if "answer" in one else []
                yield question("gqa", f"gqa-{number}", known, one["question"], answers, template, meta=meta)
