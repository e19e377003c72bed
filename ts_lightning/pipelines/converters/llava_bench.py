"""LLaVA-Bench (in the wild): open questions with a caption and a reference answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import json_lines, name_of
from ts_lightning.pipelines.converters.source import Pictures, by_id, located
from ts_lightning.pipelines.converters.vqa import question


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """One sample a line of questions.jsonl; `path` is its folder (pictures in images/), or the file.

    answers_gpt4.jsonl gives the reference answer and context.jsonl the caption for the judge, where they are.
    """
    file, folder = located(path, "questions.jsonl")
    here = (pictures or Pictures()).under(folder, "images")
    answers_file, context = folder / "answers_gpt4.jsonl", folder / "context.jsonl"
    references = by_id(_lines(answers_file), "question_id", answers_file, here.dropped)
    captions = by_id(_lines(context), "image", context, here.dropped)
    for one in json_lines(file, "LLaVA-Bench's questions"):
        with here.dropped.row(f"{file.name} question {name_of(one, 'question_id')}"):
            known = here.get(one["image"])
            if known is not None:
                number = one["question_id"]
                meta = {"question_id": number, "category": one.get("category"), "caption": None}
                meta["caption"] = captions[one["image"]].get("caption", "") if one["image"] in captions else None
                answers = [references[number].get("text", "")] if number in references else []
                yield question("llava_bench", f"llava-{number}", known, one["text"], answers, meta=meta)


def _lines(path: Path) -> list[dict[str, Any]]:
    return list(json_lines(path, "JSON lines")) if path.is_file() else []
