"""Accuracy of single-box answers (Acc@0.5) and of answers in words."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ts_lightning.metrics.mean_iou import checked_iou


class BoxAccuracy(Metric):
    """Share of questions whose box overlaps the true box: Acc@0.5 of referring expression comprehension.

    inclusive: whether an IoU equal to the threshold is right (>=, the default) or not (>); `rule` and `str()` say
    which. A missing or unparsable prediction (a NaN row) is wrong.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    count: Tensor

    def __init__(self, threshold: float = 0.5, inclusive: bool = True) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"BoxAccuracy.threshold: seen {threshold}, expected a value between 0 and 1")
        self.threshold, self.inclusive = threshold, inclusive
        for name in ("correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """Key of the result: acc50 for a threshold of 0.5."""
        return f"acc{round(self.threshold * 100):d}"

    @property
    def rule(self) -> str:
        """What counts as right, for reports: `IoU >= 0.5`."""
        return f"IoU {'>=' if self.inclusive else '>'} {self.threshold:g}"

    def extra_repr(self) -> str:
        return self.rule

    def update(self, pred_boxes: Tensor, true_boxes: Tensor) -> None:
        """Add questions: boxes [N, 4], xyxy in [0, 1] of the displayed original image."""
        iou = checked_iou(pred_boxes, true_boxes)
        right = iou >= self.threshold if self.inclusive else iou > self.threshold
        self.correct += right.sum().to(self.correct.device)
        self.count += len(iou)

    def compute(self) -> dict[str, Tensor]:
        return {self.name: self.correct.double() / self.count, "count": self.count}


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, without `. , ! ? ; : "` and a leading article, so that "A dog." equals "dog".

    A text of such marks alone stays as it is: "?" is not the empty answer.
    """
    words = re.sub(r'[.,!?;:"]', " ", text.lower()).split() or text.split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def equals_answer(text: str, accepted: Sequence[str]) -> bool:
    """Whether a text equals one of the accepted answers, both normalised."""
    return normalise_answer(text) in {normalise_answer(answer) for answer in accepted}


def contains_answer(text: str, accepted: Sequence[str]) -> bool:
    """Whether a text contains one of the accepted answers as whole words, both normalised."""
    said = f" {normalise_answer(text)} "
    return any(f" {wanted} " in said for wanted in map(normalise_answer, accepted) if wanted)


class AnswerAccuracy(Metric):
    """Share of questions whose answer equals one of the accepted answers, both normalised."""

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str], accepted: Sequence[Sequence[str]]) -> None:
        """Add questions: the N answered texts and, for each, the list of accepted answers."""
        for text, answers in zip(texts, accepted, strict=True):
            self.correct += int(equals_answer(text, answers))
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        return {"accuracy": self.correct.double() / self.count, "count": self.count}


class ContainsAccuracy(AnswerAccuracy):
    """Share of questions whose answer contains one of the accepted answers as whole words, both normalised."""

    def update(self, texts: Sequence[str], accepted: Sequence[Sequence[str]]) -> None:
        for text, answers in zip(texts, accepted, strict=True):
            self.correct += int(contains_answer(text, answers))
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        return {"contains": self.correct.double() / self.count, "count": self.count}
