"""One protocol for each kind of suite: what counts, which figure is the first, and what is declared with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts_lightning.metrics.protocols import words
from ts_lightning.metrics.protocols.boxes import (
    iou_values,
    mig_task,
    score_boxes,
    score_localization,
    score_mig,
    score_phrases,
)
from ts_lightning.metrics.protocols.readings import Record
from ts_lightning.metrics.readings.words import gqa_score, vqa_score

Score = Callable[[Sequence[Record]], dict[str, Any]]
Values = Callable[[Sequence[Record]], list[float]]


@dataclass(frozen=True)
class Protocol:
    """`score` gives the figures of a suite, `values` one number a question whose mean is the figure `main`.

    With `stratum` the mean is the unweighted one of the strata's means. `needs` are the fields without which a
    record can't be scored (`box`, `meta.category`). `convention` is printed with every score.
    """

    score: Score
    values: Values
    main: str
    convention: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    stratum: Callable[[Record], str] | None = None


def _hits(records: Sequence[Record]) -> list[float]:
    return [float(value >= 0.5) for value in iou_values(records)]


def _by_answer(rule: Callable[[str, Sequence[str]], float]) -> Values:
    return lambda records: [rule(r["text"], r["truth"]["answers"]) for r in records]


_BOX = {"parser": "lenient, the first box of the last step", "threshold": "IoU >= 0.5", "unparsed": "counts as wrong"}
_BOX_NEEDS = ("box", "image_size")
_WORDS = {"parser": "the whole answer", "unparsed": "counts as wrong"}

PROTOCOLS: dict[str, Protocol] = {
    "localization": Protocol(
        score_localization,
        iou_values,
        "miou",
        _BOX | {"sizes": "medium 32^2-96^2, large above 96^2 original pixels; small objects count in the total"},
        _BOX_NEEDS,
    ),
    "rec": Protocol(score_boxes, _hits, "acc50", _BOX, _BOX_NEEDS),
    "phrases": Protocol(
        score_phrases,
        lambda records: [score_phrases([r])["recall1_merged"] for r in records],
        "recall1_merged",
        _BOX | {"truth": "the box around all boxes of the phrase; any of them in recall1_any"},
        ("box",),
    ),
    "mig": Protocol(
        score_mig, _hits, "acc50", _BOX | {"mean": "unweighted over the tasks"}, ("box", "subtask"), mig_task
    ),
    "vqa": Protocol(
        words.per_vqa,
        _by_answer(vqa_score),
        "accuracy",
        _WORDS | {"rule": "VQAv2's soft accuracy and normalisation (TextVQA too)"},
    ),
    "gqa": Protocol(words.per_gqa, _by_answer(gqa_score), "accuracy", _WORDS | {"rule": "exact match"}),
    "answers": Protocol(
        words.per_answer(words.normalised_exact),
        _by_answer(words.normalised_exact),
        "accuracy",
        _WORDS | {"rule": "exact match after normalisation"},
    ),
    "contains": Protocol(
        words.per_answer(words.contains),
        _by_answer(words.contains),
        "accuracy",
        _WORDS | {"rule": "the answer has an accepted one as whole words"},
    ),
    "captions": Protocol(
        lambda records: {"cider": (values := words.cider_values(records)) and sum(values) / len(values)},
        words.cider_values,
        "cider",
        _WORDS | {"rule": "CIDEr over words as PTBTokenizer has them, without punctuation (our own tokenizer)"},
    ),
    "choices": Protocol(
        words.score_choices,
        lambda records: [words.choice_right(r) for r in records],
        "accuracy",
        _WORDS | {"rule": '"the answer is X", a letter alone, or the text of one option alone'},
        ("choices",),
    ),
    "steps": Protocol(
        lambda records: words.score_steps(records) | {"right": sum(map(words.step_right, records)) / len(records)},
        lambda records: [words.step_right(r) for r in records],
        "right",
        _BOX | {"rule": "right: the final words of a valid question, or calling an invalid one so"},
        ("steps",),
    ),
    "pope": Protocol(
        words.score_pope,
        lambda records: [words.score_pope([r])["accuracy"] for r in records],
        "accuracy",
        _WORDS | {"rule": "no, where the first sentence has No, no or not; yes otherwise"},
    ),
    "mme": Protocol(
        words.score_mme,
        lambda records: [],
        "perception",
        _WORDS | {"rule": "yes or no in the first four characters; 100 x (accuracy + pictures with both right)"},
        ("meta.category", "meta.image_id"),
    ),
}


def has_truth(record: Record, protocol: str) -> bool:
    """Whether a record asks what `protocol` scores: a photo's caption or list of objects is no phrase and no REC."""
    truth = record["truth"]
    if protocol == "steps":
        return truth.get("steps") is not None
    if protocol == "phrases":
        boxed = truth.get("box") is not None or bool(truth.get("boxes"))
        return boxed and record.get("subtask") == "phrase"
    return truth.get("box") is not None if "box" in PROTOCOLS[protocol].needs else bool(truth.get("answers"))


def protocol_of(records: Sequence[Record]) -> str | None:
    """The protocol that fits records without a declared one, by their truth; None where nothing can be scored."""
    if any(r["truth"].get("steps") for r in records):
        return "steps"
    first = next((r for r in records if r["truth"].get("box") is not None or r["truth"].get("answers")), None)
    if first is None:
        return None
    if first["truth"].get("box") is not None:
        return "mig" if (first.get("source") or "").startswith("mig") else "rec"
    if "contains" in first.get("tags", ()):
        return "contains"
    return "choices" if first.get("choices") else "answers"
