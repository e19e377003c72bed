"""Protocols whose answer is in words: VQA, GQA, multiple choice, yes or no, step-by-step answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ts_lightning.metrics import AnswerAccuracy, ContainsAccuracy, StepAnswer, StepMetrics
from ts_lightning.metrics.accuracy import normalise_answer
from ts_lightning.metrics.protocols.readings import Record
from ts_lightning.metrics.readings.captions import ptb_words
from ts_lightning.metrics.readings.choices import read_option
from ts_lightning.metrics.readings.mme import mme_figures
from ts_lightning.metrics.readings.words import gqa_score, vqa_score
from ts_lightning.metrics.readings.yes_no import mme_yes_no, pope_yes_no, read_yes_no

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
    return float(read_option(record["text"], choices) == wanted)


def score_choices(records: Sequence[Record]) -> Figures:
    """Multiple choice (ScienceQA, MMBench): `accuracy`, `unread`, and `circular`.

    MMBench asks a question once for each rotation of its options: in `circular` it is right when all are. Rotations
    share `meta.question_id`; without it every question stands alone.
    """
    right: dict[str, list[float]] = {}
    for record in records:
        group = str((record.get("meta") or {}).get("question_id", record["key"]))
        right.setdefault(group, []).append(choice_right(record))
    unread = [read_option(r["text"], r["choices"]) is None for r in records]
    every = [value for values in right.values() for value in values]
    return {"accuracy": _mean(every), "circular": _mean([min(v) for v in right.values()]), "unread": _mean(unread)}


def score_pope(records: Sequence[Record]) -> Figures:
    """POPE: accuracy, precision, recall, F1 and the share of yes, by POPE's own reading of an answer.

    POPE reads a yes into everything without a no; `unread` is the share of answers that say neither.
    """
    true = [r["truth"]["answers"][0].strip().lower() == "yes" for r in records]
    return binary_figures([pope_yes_no(r["text"]) for r in records], true) | {"unread": _neither(records)}


def score_mme(records: Sequence[Record]) -> Figures:
    """MME by its own reading and sums: `perception` (what papers print), `cognition`, each category, `unread`.

    `meta` has `category` and `image_id`; an answer that says neither yes nor no is wrong.
    """
    said = [mme_yes_no(r["text"]) for r in records]
    true = [r["truth"]["answers"][0].strip().lower() == "yes" for r in records]
    pictures = [(r["meta"]["category"], str(r["meta"]["image_id"])) for r in records]
    figures = mme_figures((*where, s is t) for where, s, t in zip(pictures, said, true, strict=True))
    return {**figures, "unread": _mean([one is None for one in said])}


def binary_figures(said: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """POPE's figures with yes as the positive class: accuracy, precision, recall, f1, yes_ratio; 0 over nothing."""
    pairs = list(zip(said, true, strict=True))
    hits = sum(s and t for s, t in pairs)
    precision, recall = _share(hits, sum(said)), _share(hits, sum(true))
    return {
        "accuracy": _share(sum(s == t for s, t in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(sum(said), len(pairs)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _neither(records: Sequence[Record]) -> float:
    return _mean([read_yes_no(r["text"]) is None for r in records])


def cider_values(records: Sequence[Record]) -> list[float]:
    """CIDEr of each caption, by pycocoevalcap over `ptb_words` (its own tokenizer needs Java).

    ModuleNotFoundError in one line where the package is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ModuleNotFoundError:
        raise ModuleNotFoundError("CIDEr needs pycocoevalcap: pip install 'ts-lightning[gic]'") from None
    said = {i: [" ".join(ptb_words(r["text"]))] for i, r in enumerate(records)}
    true = {i: [" ".join(ptb_words(text)) for text in r["truth"]["answers"]] for i, r in enumerate(records)}
    return [float(value) for value in Cider().compute_score(true, said)[1]]


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


per_vqa, per_gqa = per_answer(vqa_score), per_answer(gqa_score)
