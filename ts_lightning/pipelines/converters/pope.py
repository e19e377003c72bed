"""POPE: yes-or-no questions about objects that are there, or are not."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, files_of
from ts_lightning.pipelines.converters.vqa import question


def read(path: str | Path, pictures: Pictures | None = None, template: str | None = None) -> Iterator[Sample]:
    """One sample a line; `path` is coco_pope_{random,popular,adversarial}.json, or a folder of such files."""
    path = Path(path)
    files = files_of(path, "*pope*.json") if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: seen no *pope*.json, expected POPE's files in it")
    here = (pictures or Pictures()).under(path if path.is_dir() else path.parent, "val2014", "images")
    for file in files:
        for one in rows(file, ("question_id", "image", "text", "label"), "POPE's lines"):
            with here.dropped.row(f"{file.name} question {name_of(one, 'question_id')}"):
                known = here.get(one["image"])
                if known is not None:
                    meta = {"question_id": one["question_id"], "file": file.name}
                    key = f"{file.stem}-{one['question_id']}"
                    answers = [one["label"]]
                    yield question("pope", key, known, one["text"], answers, template, "yes_no", meta=meta)
