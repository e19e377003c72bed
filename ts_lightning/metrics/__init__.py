"""Metrics: functions plus thin torchmetrics classes whose states are sums and counts: any split over ranks agrees."""

from ts_lightning.metrics.accuracy import AnswerAccuracy, BoxAccuracy, ContainsAccuracy, normalise_answer
from ts_lightning.metrics.mean_iou import MeanIoU, box_iou, box_tensor
from ts_lightning.metrics.steps import StepAnswer, StepMetrics, match_boxes, said_steps, target_steps

__all__ = [
    "AnswerAccuracy",
    "BoxAccuracy",
    "ContainsAccuracy",
    "MeanIoU",
    "StepAnswer",
    "StepMetrics",
    "box_iou",
    "box_tensor",
    "match_boxes",
    "normalise_answer",
    "said_steps",
    "target_steps",
]
