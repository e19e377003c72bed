"""TextVQA: questions about the text in a picture, ten answers each."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import listed, load_json, mapped, name_of
from ts_lightning.pipelines.converters.source import Pictures, located, need, whole
from ts_lightning.pipelines.converters.vqa import by_frequency, question

WHAT, OCR = "TextVQA's data", "Rosetta's words for TextVQA"


def read(
    path: str | Path,
    pictures: Pictures | None = None,
    split: str = "val",
    template: str | None = None,
    ocr: bool = False,
) -> Iterator[Sample]:
    """One sample a question of TextVQA_0.5.1_SPLIT.json; `path` is its folder (pictures in train_images/), or the file.

    The most frequent of the ten answers is the answer; `answers` are all ten, the most frequent first. `ocr` puts the
    words that Rosetta read (TextVQA_Rosetta_OCR_v0.2_SPLIT.json beside it) on a line between question and format, as
    LLaVA's evaluation has them.
    """
    file, folder = located(path, f"TextVQA_*_{split}.json")
    here = (pictures or Pictures()).under(folder, "train_images", "train_val_images/train_images", "test_images")
    tokens: dict[str, str] = {}
    if ocr:
        read_by = need(folder, f"TextVQA_Rosetta_OCR_*_{split}.json")
        found = mapped(load_json(read_by, OCR), read_by, OCR).get("data")
        for one in whole(listed(found, read_by, ("image_id", "ocr_tokens"), OCR), read_by, here.dropped):
            tokens[str(one["image_id"])] = ", ".join(map(str, one["ocr_tokens"]))
    rows = mapped(load_json(file, WHAT), file, WHAT).get("data")
    for one in listed(rows, file, ("question", "image_id", "question_id"), WHAT):
        with here.dropped.row(f"{file.name} question {name_of(one, 'question_id')}"):
            known = here.get(f"{one['image_id']}.jpg")  # the file states the size of Flickr's original, not of this one
            if known is not None:
                meta = {"question_id": one["question_id"], "image_id": one["image_id"]}
                answers = by_frequency(one.get("answers") or [])
                key = f"textvqa-{one['question_id']}"
                asked = one["question"]
                if ocr:
                    asked += f"\nReference OCR token: {tokens.get(str(one['image_id']), '')}"
                yield question("textvqa", key, known, asked, answers, template, meta=meta)
