"""Protocols whose answer is in words: a few words, yes or no, an option, open answers."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ts_lightning.metrics.accuracy import contains_answer, equals_answer
from ts_lightning.metrics.judge import INSTRUCTIONS
from ts_lightning.metrics.protocols.base import Figures, Protocol, Row, Values, group_by, mean, pictures_of
from ts_lightning.metrics.readings.choices import (
    llava_option,
    lmms_eval_option,
    read_option,
    vlmevalkit_option,
)
from ts_lightning.metrics.readings.mme import mme_figures
from ts_lightning.metrics.readings.words import gqa_score, textvqa_score, vqa_score, vqav2_score
from ts_lightning.metrics.readings.yes_no import lmms_eval_mme_yes_no, mme_yes_no, pope_yes_no, read_yes_no
from ts_lightning.metrics.record import Record

Score = Callable[[str, Sequence[str]], float]


class Words(Protocol):
    """What the protocols of answers in words share: `right` of an answer by the suite's reading, and by ours."""

    main = "accuracy"
    unanswered: ClassVar[Row] = {"value": 0.0, "ours": 0.0}

    def takes(self, record: Record) -> bool:
        return record.truth.box is None and record.truth.steps is None and bool(record.truth.answers)

    def score(self, record: Record, reading: str) -> float:
        """What the answer is worth by `reading`."""
        raise NotImplementedError

    def row(self, record: Record) -> Row:
        value = self.score(record, self.reading)
        return {"value": value, "ours": value if self.reading == "lenient" else self.score(record, "lenient")}

    def figures(self, rows: Sequence[Row]) -> Figures:
        figures = {"accuracy": mean([row["value"] for row in rows])}
        return figures if self.reading == "lenient" else figures | {"accuracy_ours": mean([r["ours"] for r in rows])}


class Answers(Words):
    """Equal to an accepted answer after normalisation; where the question is tagged `contains`, an accepted one occurs
    as whole words.
    """

    name = "answers"
    convention = {"rule": "exact match after normalisation (tagged `contains`: an accepted one occurs as whole words)"}

    def score(self, record: Record, reading: str) -> float:
        rule = contains_answer if "contains" in record.tags else equals_answer
        return float(rule(record.text, record.truth.answers))


class Contains(Words):
    """An accepted answer occurs in the text as whole words: region text, VizWiz, PointQA (ChatSpot, Table 2)."""

    name = "contains"
    convention = {"rule": "the answer has an accepted one as whole words"}

    def score(self, record: Record, reading: str) -> float:
        return float(contains_answer(record.text, record.truth.answers))


class VQA(Words):
    """VQAv2, TextVQA and GQA by their own evaluation code; `lenient` is VQAv2's soft rule, always normalised."""

    name = "vqa"
    readings = ("vqav2", "textvqa", "gqa", "lenient")
    convention = {"rule": "the benchmark's own evaluation code; accuracy_ours: VQAv2's soft rule, always normalised"}
    scores: ClassVar[dict[str, Score]] = {
        "vqav2": vqav2_score,
        "textvqa": textvqa_score,
        "gqa": gqa_score,
        "lenient": vqa_score,
    }

    def score(self, record: Record, reading: str) -> float:
        return self.scores[reading](record.text, record.truth.answers)


class Choice(Words):
    """Multiple choice: which option the answer takes; `llava` is ScienceQA's script, `vlmevalkit` MMBench's, and
    `lmms_eval` V*Bench's there (its own script ranks the options by their likelihood and reads no text).
    """

    name = "choice"
    readings = ("lenient", "llava", "vlmevalkit", "lmms_eval")
    convention = {"rule": "the option that the answer takes; an answer that takes none is wrong"}

    def takes(self, record: Record) -> bool:
        return super().takes(record) and record.choices is not None

    def option(self, record: Record, reading: str) -> int | None:
        choices = self.expect(record, record.choices, "choices")
        if reading in ("llava", "lmms_eval"):
            return (llava_option if reading == "llava" else lmms_eval_option)(record.text, len(choices))
        return (vlmevalkit_option if reading == "vlmevalkit" else read_option)(record.text, choices)

    def score(self, record: Record, reading: str) -> float:
        choices, true = self.expect(record, record.choices, "choices"), record.truth.answers[0]
        wanted = choices.index(true) if true in choices else ord(true.strip()[:1].upper() or "A") - 65
        return float(self.option(record, reading) == wanted)

    def row(self, record: Record) -> Row:
        group = str(record.meta.get("question_id", record.key))
        return super().row(record) | {"group": group, "unread": self.option(record, self.reading) is None}

    def figures(self, rows: Sequence[Row]) -> Figures:
        groups = group_by(rows, "group").values()
        circular = mean([min(row["value"] for row in group) for group in groups])
        return super().figures(rows) | {"circular": circular, "unread": mean([row["unread"] for row in rows])}


class Circular(Choice):
    """MMBench: a question is right when it is under every rotation of its options (they share `meta.question_id`)."""

    name = "circular"
    main = "circular"
    convention = {"rule": "right under every rotation of the options; accuracy: the mean over rotations"}

    def values(self, rows: Sequence[Row]) -> Values:
        groups = group_by(rows, "group")
        right = [min(row["value"] for row in group) for group in groups.values()]
        return Values(list(groups), right, None, pictures_of([group[0] for group in groups.values()]))


YES_NO: dict[str, Callable[[str], bool | None]] = {
    "pope": pope_yes_no,
    "mme": mme_yes_no,
    "lmms_eval": lmms_eval_mme_yes_no,
    "lenient": read_yes_no,
}


class YesNo(Words):
    """POPE: accuracy, precision, recall, F1 and the share of yes, yes being the positive class."""

    name = "yes_no"
    readings: ClassVar[tuple[str, ...]] = ("pope", "lenient")
    convention = {"rule": "pope: no, where the first sentence has No, no or not; yes otherwise"}
    unanswered: ClassVar[Row] = {"value": 0.0, "ours": 0.0, "said": None}

    def score(self, record: Record, reading: str) -> float:
        return float(YES_NO[reading](record.text) is is_yes(record))

    def row(self, record: Record) -> Row:
        said = {"said": YES_NO[self.reading](record.text), "true": is_yes(record)}
        return super().row(record) | said | {"unread": read_yes_no(record.text) is None}

    def figures(self, rows: Sequence[Row]) -> Figures:
        figures = super().figures(rows) | binary_figures([row["said"] for row in rows], [row["true"] for row in rows])
        return figures | {"unread": mean([row["unread"] for row in rows])}


class MME(YesNo):
    """MME: perception (ten categories, at most 2000) and cognition (four, at most 800)."""

    name = "mme"
    main = "perception"
    readings = ("mme", "lmms_eval", "lenient")
    convention = {"rule": "yes or no in the first four letters; 100 x (accuracy + pictures with both right) a category"}

    def row(self, record: Record) -> Row:
        names = {name: self.expect(record, record.meta.get(name), f"meta.{name}") for name in ("category", "image_id")}
        row = super().row(record) | {name: str(value) for name, value in names.items()}
        row["right"] = row.pop("value")
        return row

    def figures(self, rows: Sequence[Row]) -> Figures:
        figures: Figures = dict(mme_figures((r["category"], r["image_id"], bool(r["right"])) for r in rows))
        if self.reading != "lenient":
            ours = mme_figures((r["category"], r["image_id"], bool(r["ours"])) for r in rows)
            figures |= {f"{name}_ours": ours[name] for name in ("perception", "cognition")}
        return figures | {"unread": mean([row["unread"] for row in rows])}


class Counted(Protocol):
    """Every answered question of a suite without a protocol, for the share of answers that were cut off."""

    name = "counted"
    main = "cut_off"
    convention: ClassVar[dict[str, str]] = {"rule": "every answered question"}

    def takes(self, record: Record) -> bool:
        return True

    def row(self, record: Record) -> Row:
        return {}

    def figures(self, rows: Sequence[Row]) -> Figures:
        return {}


class OpenEnded(Words):
    """MM-Vet, LLaVA-Bench and their like: a judge scores them, never inside validation; here they are only counted."""

    name = "open_ended"
    main = "score"
    readings: ClassVar[tuple[str, ...]] = tuple(INSTRUCTIONS)
    convention = {"scored": "by a judge, with --judge"}

    def row(self, record: Record) -> Row:
        return {"empty": not record.text.strip()}

    def figures(self, rows: Sequence[Row]) -> Figures:
        return {"empty": mean([row["empty"] for row in rows])}


def is_yes(record: Record) -> bool:
    """Whether the true answer is yes."""
    return record.truth.answers[0].strip().lower() == "yes"


def binary_figures(said: Sequence[bool | None], true: Sequence[bool]) -> dict[str, float]:
    """POPE's figures with yes as the positive class: precision, recall, f1, yes_ratio; 0 over nothing."""
    hits = sum(bool(s) and t for s, t in zip(said, true, strict=True))
    precision, recall = _share(hits, sum(map(bool, said))), _share(hits, sum(true))
    return {
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(sum(map(bool, said)), len(true)),
    }


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0
