"""Protocols whose answer is in words: VQA, GQA, multiple choice, yes or no, step-by-step answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ts_lightning.metrics import AnswerAccuracy, ContainsAccuracy, StepAnswer, StepMetrics
from ts_lightning.metrics.accuracy import normalise_answer
from ts_lightning.metrics.protocols.readings import Record
from ts_lightning.metrics.vqa import (
    binary_figures,
    exact_score,
    pope_read,
    read_choice,
    read_yes_no,
    vqa_score,
)

Figures = dict[str, Any]


def per_answer(rule: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Record]], Figures]:
    """A protocol: the mean of `rule(text, accepted answers)`."""

    def score(records: Sequence[Record]) -> Figures:
        return {"accuracy": _mean([rule(r["text"], r["truth"]["answers"]) for r in records])}

    return score


def normalised_exact(text: str, answers: Sequence[str]) -> float:
    """1 where the answer equals an accepted one, as `AnswerAccuracy` compares."""
    metric = AnswerAccuracy()
    metric.update([text], [answers])
    return float(metric.compute()["accuracy"])


def contains(text: str, answers: Sequence[str]) -> float:
    """1 where the answer contains an accepted one, as `ContainsAccuracy` compares."""
    metric = ContainsAccuracy()
    metric.update([text], [answers])
    return float(metric.compute()["contains"])


def choice_right(record: Record) -> float:
    """1 where the option that the answer takes is the true one (named by its text or its letter)."""
    choices, true = record["choices"], record["truth"]["answers"][0]
    wanted = choices.index(true) if true in choices else ord(true.strip()[:1].upper()) - 65
    return float(read_choice(record["text"], choices) == wanted)


def score_choices(records: Sequence[Record]) -> Figures:
    """Multiple choice (ScienceQA, MMBench): `accuracy`, `unread`, and `circular`.

    MMBench asks a question once for each rotation of its options: in `circular` it is right when all are. Rotations
    share `meta.question_id`; without it every question stands alone.
    """
    right: dict[str, list[float]] = {}
    for record in records:
        group = str((record.get("meta") or {}).get("question_id", record["key"]))
        right.setdefault(group, []).append(choice_right(record))
    unread = [read_choice(r["text"], r["choices"]) is None for r in records]
    every = [value for values in right.values() for value in values]
    return {"accuracy": _mean(every), "circular": _mean([min(v) for v in right.values()]), "unread": _mean(unread)}


def score_pope(records: Sequence[Record]) -> Figures:
    """POPE: accuracy, precision, recall, F1 and the share of yes, by POPE's own reading of an answer.

    POPE reads a yes into everything without a no; `unread` is the share of answers that say neither.
    """
    true = [r["truth"]["answers"][0].strip().lower() == "yes" for r in records]
    return binary_figures([pope_read(r["text"]) for r in records], true) | {"unread": _neither(records)}


def score_mme(records: Sequence[Record]) -> Figures:
    """MME: for each category 100 x (accuracy + share of images with both questions right), and their sum.

    `meta` has `category` and `image_id`; an answer that says neither yes nor no is wrong.
    """
    categories: dict[str, dict[str, list[bool]]] = {}
    for record in records:
        meta = record["meta"]
        said = read_yes_no(record["text"])
        right = said is not None and said == (record["truth"]["answers"][0].strip().lower() == "yes")
        categories.setdefault(meta["category"], {}).setdefault(str(meta["image_id"]), []).append(right)
    scores = {
        name: 100 * (_mean([r for pair in images.values() for r in pair]) + _mean([all(p) for p in images.values()]))
        for name, images in categories.items()
    }
    return {"total": sum(scores.values()), "unread": _neither(records), "by_category": scores}


def _neither(records: Sequence[Record]) -> float:
    return _mean([read_yes_no(r["text"]) is None for r in records])


def cider_values(records: Sequence[Record]) -> list[float]:
    """CIDEr of each caption, by pycocoevalcap over lower-case words without punctuation (its tokenizer needs Java).

    ModuleNotFoundError in one line where the package is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ModuleNotFoundError:
        raise ModuleNotFoundError("CIDEr needs pycocoevalcap: pip install 'ts-lightning[gic]'") from None
    said = {i: [_plain_words(r["text"])] for i, r in enumerate(records)}
    true = {i: [_plain_words(text) for text in r["truth"]["answers"]] for i, r in enumerate(records)}
    return [float(value) for value in Cider().compute_score(true, said)[1]]


def _plain_words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def score_steps(records: Sequence[Record]) -> Figures:
    """Step-by-step answers and negatives: the rates of `StepMetrics`."""
    metric = StepMetrics()
    metric.update(*([_step_answer(r["steps"]) for r in some] for some in (records, [r["truth"] for r in records])))
    return {name: float(value) for name, value in metric.compute().items() if name != "count"}


def step_right(record: Record) -> float:
    """1 where the final words are right, or an invalid question is called so."""
    said, true = _step_answer(record["steps"]), _step_answer(record["truth"]["steps"])
    if true.rejected:
        return float(said.rejected)
    return float(normalise_answer(said.answer) == normalise_answer(true.answer))


def _step_answer(parts: Mapping[str, Any]) -> StepAnswer:
    boxes = [[(b[0], b[1], b[2], b[3]) for b in step] for step in parts["step_boxes"]]
    return StepAnswer(parts["answer"], boxes, parts["rejected"])


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / len(values) if values else float("nan")


per_vqa, per_gqa = per_answer(vqa_score), per_answer(exact_score)
