"""VQA-RAD: questions about radiology pictures."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.pipelines.converters.files import name_of, rows
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str | None = None,
    template: str | None = None,
    task: str = UNDERSTANDING,
) -> Iterator[Sample]:
    """One sample a row of "VQA_RAD Dataset Public.json"; `path` is its folder, or the file.

    The usual test set (`split` test) is the rows whose phrase_type begins with test_; train is the rest. `task` is the
    package that learns them: of task understanding a package learns nothing.
    """
    file, folder = located(path, "VQA_RAD Dataset Public.json", "*.json")
    here = (pictures or Pictures()).under(folder, "VQA_RAD Image Folder", "images")
    for one in rows(file, ("qid", "image_name", "question", "answer"), "VQA-RAD's rows"):
        with here.dropped.row(f"{file.name} question {name_of(one, 'qid')}"):
            part = "test" if str(one.get("phrase_type", "")).startswith("test") else "train"
            if split is not None and part != split:
                continue
            known = here.get(one["image_name"])
            if known is not None:
                meta = {"question_id": one["qid"], "split": part} | {
                    name: one.get(name) for name in ("answer_type", "question_type", "image_organ")
                }
                answers = [one["answer"]]
                yield question(
                    "vqa_rad", f"rad-{one['qid']}", known, one["question"], answers, template, meta=meta, task=task
                )
