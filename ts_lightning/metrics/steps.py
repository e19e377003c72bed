"""Metrics of step-by-step answers ("Step 1: Find the man [[10,9,79,100]]. Step 2: So the answer is orange.")."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from ts_lightning.grounding.answer import Answer, read_answer
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.steps import is_rejection, step_spans
from ts_lightning.metrics.accuracy import normalise_answer
from ts_lightning.metrics.mean_iou import box_iou, box_tensor

_PLACEHOLDER = re.compile(r"\{region:(\d+)\}")


class StepAnswer(NamedTuple):
    """An answer taken apart: its final words ("" = none), the boxes of each step, whether it rejects the question."""

    answer: str
    step_boxes: list[list[Box]]
    rejected: bool


def said_steps(answer: Answer) -> StepAnswer:
    """A generated answer as `StepMetrics` takes it."""
    return StepAnswer(answer.words, answer.step_boxes, answer.rejected)


def target_steps(text: str, region_boxes: Sequence[Sequence[Box]]) -> StepAnswer:
    """Take a sample's answer apart; its boxes are `{region:i}` placeholders, i an index of `region_boxes`."""
    boxes = [
        [box for match in _PLACEHOLDER.finditer(text[start:end]) for box in region_boxes[int(match[1])]]
        for start, end in step_spans(text)
    ]
    return StepAnswer(read_answer(_PLACEHOLDER.sub("", text), get_codec("scout"), []).words, boxes, is_rejection(text))


def match_boxes(pred_boxes: Sequence[Box], true_boxes: Sequence[Box], threshold: float = 0.5) -> int:
    """Number of one-to-one matches with IoU >= threshold, the best overlapping pair first."""
    if not pred_boxes or not true_boxes:
        return 0
    iou = box_iou(box_tensor(pred_boxes).unsqueeze(1), box_tensor(true_boxes).unsqueeze(0))
    matches = 0
    while iou.max() >= threshold:
        pred, true = divmod(int(iou.argmax()), iou.shape[1])
        iou[pred, :] = iou[:, true] = -1.0
        matches += 1
    return matches


class StepMetrics(Metric):
    """Step-by-step answers: final answer, boxes of each step, rejection of invalid questions.

      answer_acc            valid questions with an answer in words whose final words are right (normalised, exact)
      step_precision        predicted boxes that match a true box of the same step (IoU >= 0.5, one to one), of all
      step_recall           true boxes matched by a predicted box of the same step, of all
      rejection_rate        invalid questions ("This question is invalid.") that are called so
      false_rejection_rate  valid questions that are called invalid

    A rate over nothing is NaN. Boxes are counted over all questions, those of rejections included.
    """

    full_state_update = False
    threshold = 0.5
    hits: Tensor
    totals: Tensor
    count: Tensor
    rates = ("answer_acc", "step_precision", "step_recall", "rejection_rate", "false_rejection_rate")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Sequence[StepAnswer], targets: Sequence[StepAnswer]) -> None:
        """Add questions: what `said_steps` and `target_steps` make of the generated and the true answers."""
        for pred, target in zip(preds, targets, strict=True):
            hits, totals = step_counts(pred, target, self.threshold)
            self.hits += torch.tensor(hits, device=self.hits.device)
            self.totals += torch.tensor(totals, device=self.totals.device)
            self.count += 1

    def compute(self) -> dict[str, Tensor]:
        shares = self.hits.double() / self.totals
        return {**dict(zip(self.rates, shares, strict=True)), "count": self.count}


def step_counts(pred: StepAnswer, target: StepAnswer, threshold: float = 0.5) -> tuple[list[int], list[int]]:
    """Hits and totals of one question, in the order of `StepMetrics.rates`."""
    has_answer = not target.rejected and target.answer != ""
    right = has_answer and normalise_answer(pred.answer) == normalise_answer(target.answer)
    matches = sum(match_boxes(p, t, threshold) for p, t in zip(pred.step_boxes, target.step_boxes, strict=False))
    num_pred, num_true = sum(map(len, pred.step_boxes)), sum(map(len, target.step_boxes))
    rejected = int(pred.rejected)
    hits = [int(right), matches, matches, rejected * target.rejected, rejected * (not target.rejected)]
    return hits, [int(has_answer), num_pred, num_true, int(target.rejected), int(not target.rejected)]
