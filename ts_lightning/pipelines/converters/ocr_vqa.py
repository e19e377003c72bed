"""OCR-VQA: questions about book covers."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "OCR-VQA's books by id"
SPLITS = {"train": 1, "val": 2, "test": 3}


def read(
    path: str | Path, pictures: Pictures | None = None, split: str | None = None, template: str | None = None
) -> Iterator[Sample]:
    """One sample a question of dataset.json; `path` is its folder (pictures in images/), or the file."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: seen {split!r}, expected {', '.join(SPLITS)}")
    file, folder = located(path, "dataset.json")
    here = (pictures or Pictures()).under(folder, "images")
    for name, one in mapped(load_json(file, WHAT), file, WHAT).items():
        with here.dropped.row(f"{file.name} book {name}"):
            if split is not None and one.get("split") != SPLITS[split]:
                continue
            known = here.get(f"{name}{Path(one.get('imageURL', '.jpg')).suffix or '.jpg'}")
            if known is None:
                continue
            meta = {"image_id": name, "title": one.get("title"), "genre": one.get("genre"), "split": one.get("split")}
            for number, (text, answer) in enumerate(zip(one["questions"], one["answers"], strict=False)):
                key = f"ocrvqa-{name}-{number}"
                yield question("ocr_vqa", key, known, text, [answer], template, meta=meta)
            if len(one["questions"]) != len(one["answers"]):
                here.dropped.note("books with another number of answers than questions", name)
