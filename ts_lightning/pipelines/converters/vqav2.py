"""VQAv2: questions and annotations in two files, ten answers each."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import listed, load_json, mapped, name_of
from ts_lightning.pipelines.converters.source import LeftOut, Pictures, by_id, files_of, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "VQAv2's questions and annotations"


def read(
    path: str | Path, pictures: Pictures | None = None, split: str = "val2014", template: str | None = None
) -> Iterator[Sample]:
    """One sample a question; `path` is the folder of v2_OpenEnded_mscoco_SPLIT_questions.json, or that file.

    The answer is the most common one, `answers` are the ten as given, and the annotations may be missing (test sets).
    """
    file, folder = located(path, f"v2_OpenEnded_mscoco_{split}_questions.json", f"*OpenEnded*{split}_questions.json")
    notes = files_of(folder, f"*mscoco_{split}_annotations.json")
    here = (pictures or Pictures()).under(folder, split, f"images/{split}", "test2015", "images")
    data = mapped(load_json(file, WHAT), file, WHAT)
    known_answers = {}
    if notes:
        rows = mapped(load_json(notes[0], WHAT), notes[0], WHAT).get("annotations")
        rows = listed(rows, notes[0], ("question_id", "answers"), WHAT)
        known_answers = by_id(rows, "question_id", notes[0], here.dropped)
    subtype = data.get("data_subtype", split)
    for one in listed(data.get("questions"), file, ("question_id", "image_id", "question"), WHAT):
        with here.dropped.row(f"{file.name} question {name_of(one, 'question_id')}"):
            known = here.get(f"COCO_{subtype}_{int(one['image_id']):012d}.jpg")
            if known is None:
                continue
            note = known_answers.get(one["question_id"])
            if note is None and known_answers:
                here.dropped.note("questions without an annotation", one["question_id"])
                continue
            meta = {"question_id": one["question_id"], "image_id": one["image_id"]}
            answers: list[str] = []
            if note is not None:
                answers = [answer["answer"] for answer in note["answers"]]
                if not answers:
                    raise LeftOut("questions without an answer")
                meta |= {"answer_type": note.get("answer_type"), "question_type": note.get("question_type")}
            sample = question(
                "vqav2", f"vqa-{one['question_id']}", known, one["question"], answers, template, meta=meta
            )
            if note is not None and sample.answer is not None:
                sample.turns[-1].text = sample.answer.text = note.get("multiple_choice_answer", answers[0])
            yield sample
