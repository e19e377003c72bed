"""ST-VQA: questions about the text in a scene."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import listed, load_json, mapped
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "ST-VQA's data"


def read(
    path: str | Path, pictures: Pictures | None = None, task: int = 3, split: str = "train", template: str | None = None
) -> Iterator[Sample]:
    """One sample a question of SPLIT_task_N.json; `path` is its folder, or the file.

    Pictures are named by `file_path` (coco-text/NAME.jpg). Test files have no answers.
    """
    file, folder = located(path, f"{split}_task_{task}.json")
    sources = ("coco-text", "icdar2013", "icdar2015", "IIIT_STR", "imageNet", "vizwiz", "VisualGenome", "visual genome")
    here = (pictures or Pictures()).under(folder, *sources, "images", "ST-VQA", f"{split}_images", f"{split}_imgs")
    rows = mapped(load_json(file, WHAT), file, WHAT).get("data")
    for number, one in enumerate(listed(rows, file, ("question", "file_path"), WHAT)):
        with here.dropped.row(f"{file.name} item {number}"):
            known = here.get(one["file_path"])
            if known is not None:
                meta = {"question_id": one.get("question_id", number), "dataset": one.get("dataset")}
                key = f"stvqa-{one.get('question_id', number)}"
                yield question("st_vqa", key, known, one["question"], one.get("answers") or [], template, meta=meta)
