"""DocVQA: questions about scanned pages."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import listed, load_json, mapped, name_of
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "DocVQA's data"


def read(
    path: str | Path, pictures: Pictures | None = None, split: str = "val", template: str | None = None
) -> Iterator[Sample]:
    """One sample a question of SPLIT_v1.0.json; `path` is its folder (pictures in documents/), or the file."""
    file, folder = located(path, f"{split}_v1.0*.json", f"{split}/{split}_v1.0*.json")
    here = (pictures or Pictures()).under(file.parent if file.parent != folder else folder, "documents")
    rows = mapped(load_json(file, WHAT), file, WHAT).get("data")
    for one in listed(rows, file, ("questionId", "question", "image"), WHAT):
        with here.dropped.row(f"{file.name} question {name_of(one, 'questionId')}"):
            known = here.get(one["image"])
            if known is not None:
                meta = {name: one.get(name) for name in ("docId", "question_types", "ucsf_document_page_no")}
                meta["question_id"] = one["questionId"]
                key = f"docvqa-{one['questionId']}"
                yield question("docvqa", key, known, one["question"], one.get("answers") or [], template, meta=meta)
