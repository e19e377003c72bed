"""ScienceQA: multiple choice; the questions with a picture."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.files import load_json, mapped
from ts_lightning.pipelines.converters.source import Pictures, located
from ts_lightning.pipelines.converters.vqa import question

WHAT = "ScienceQA's problems by id"


def read(
    path: str | Path, pictures: Pictures | None = None, split: str = "test", template: str | None = None
) -> Iterator[Sample]:
    """One sample for each problem of `split` with a picture; `path` is the folder of problems.json, or the file.

    pid_splits.json, where it is, says which problems a split has. Pictures are SPLIT/ID/image.png. With a `template` a
    hint is the question's "Context: ", as in LLaVA's evaluation.
    """
    file, folder = located(path, "problems.json", "data/scienceqa/problems.json")
    here = (pictures or Pictures()).under(folder, "images", split, ".")
    if here.folder == folder and not (folder / split).is_dir() and not (folder / "images").is_dir():
        here.folder = None
    problems = mapped(load_json(file, WHAT), file, WHAT)
    splits = file.with_name("pid_splits.json")
    chosen = [number for number, one in problems.items() if not isinstance(one, dict) or one.get("split") == split]
    if splits.is_file():
        named = mapped(load_json(splits, WHAT), splits, WHAT)
        if split not in named:
            raise ValueError(f"{splits}: seen the split {split!r}, expected one of {', '.join(named)}")
        chosen = [str(number) for number in named[split]]
    for number in chosen:
        with here.dropped.row(f"{file.name} problem {number}"):
            one = problems.get(number)
            if one is None:
                here.dropped.note("problems of the split that problems.json does not have", number)
                continue
            if not one.get("image"):
                here.dropped.note("problems without a picture", number, stops=False)
                continue
            name = one["image"]
            known = here.get(f"{one.get('split', split)}/{number}/{name}" if here.folder else name)
            if known is None:
                continue
            known[0].name = f"{number}_{known[0].name}"  # every picture is called image.png
            choices = one["choices"]
            answers = [choices[one["answer"]]] if 0 <= one.get("answer", -1) < len(choices) else []
            meta = {"question_id": number} | {name: one.get(name) for name in ("subject", "topic", "category", "grade")}
            hint = one.get("hint") or ""
            hint = f"Context: {hint}" if hint and template else hint
            fields = {"choices": choices, "hint": hint, "meta": meta, "subtask": "multiple_choice"}
            yield question("scienceqa", f"sqa-{number}", known, one["question"], answers, template, **fields)
