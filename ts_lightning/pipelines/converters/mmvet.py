"""MM-Vet: open questions by capability."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "MM-Vet's questions by id"


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One sample a question of mm-vet.json; `path` is its folder (pictures in images/), or the file.

    The reference answer is kept as published: MM-Vet is scored by a judge, where <AND> and <OR> have a meaning.
    """
    file, folder = located(path, "mm-vet.json")
    here = (pictures or Pictures()).under(folder, "images")
    for number, one in mapped(load_json(file, WHAT), file, WHAT).items():
        with here.dropped.row(f"{file.name} question {number}"):
            known = here.get(one["imagename"])
            if known is not None:
                meta = {
                    "question_id": number,
                    "capability": one.get("capability"),
                    "imagesource": one.get("imagesource"),
                }
                yield question("mmvet", f"mmvet-{number}", known, one["question"], [one["answer"]], meta=meta)
