"""MME: folders of pictures with two yes-or-no questions each."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import read_text
from ts_lightning.pipelines.converters.source import Pictures, files_of
from ts_lightning.pipelines.converters.vqa import question

_FORM = "Please answer yes or no."


def read(path: str | Path, pictures: Pictures | None = None, template: str | None = None) -> Iterator[Sample]:
    """One sample a question; `path` has a folder for each category with NAME.txt (question, tab, Yes or No).

    A category has its pictures beside the texts, or texts in questions_answers_YN/ and pictures in images/. A
    `template` stands in the place of "Please answer yes or no.", as in LLaVA's evaluation.
    """
    root, pictures = Path(path), pictures or Pictures()
    texts = files_of(root, "*/*.txt", "*/questions_answers_YN/*.txt")
    if not texts:
        raise ValueError(f"{root}: seen no CATEGORY/*.txt, expected MME's folders of categories")
    for file in texts:
        with pictures.dropped.row(f"{file.parent.name}/{file.name}"):
            yield from _file(file, root, pictures, template)


def _file(file: Path, root: Path, pictures: Pictures, template: str | None) -> Iterator[Sample]:
    base = file.parent.parent if file.parent.name == "questions_answers_YN" else file.parent
    pairs = [
        line.split("\t") for line in read_text(file, "MME's question and answer pairs").split("\n") if line.strip()
    ]
    if any(len(pair) != 2 for pair in pairs):
        pictures.dropped.note("question files that are not tab-separated pairs", f"{base.name}/{file.name}")
        return
    folder = (pictures.folder or root) / base.name
    places = [folder / "images", folder]
    found = [
        p for place in places for suffix in (".jpg", ".png", ".jpeg") if (p := place / f"{file.stem}{suffix}").is_file()
    ]
    here = Pictures(found[0].parent if found else folder, pictures.excluded, pictures.dropped)
    known = here.get(found[0].name if found else f"{file.stem}.jpg")
    if known is None:
        return
    meta = {"category": base.name, "image_id": file.stem}
    for number, (text, answer) in enumerate(pairs):
        key = f"mme-{base.name}-{file.stem}-{number}"
        text = text if template is None else text.strip().removesuffix(_FORM).rstrip()
        yield question("mme", key, known, text, [answer.strip()], template, subtask=base.name, meta=meta)
