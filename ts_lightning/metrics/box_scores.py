"""Scores of one predicted box against one true box, and what they become over many questions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ts_lightning.metrics.mean_iou import checked_iou

THRESHOLDS = tuple(i / 10 for i in range(1, 10))


def centre_inside(pred_boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """[N] whether the centre of the predicted box lies in the true box, edges included; False for a NaN row."""
    centre = (pred_boxes[:, :2] + pred_boxes[:, 2:]).double() / 2
    true = true_boxes.double()
    return ((centre >= true[:, :2]) & (centre <= true[:, 2:])).all(dim=1)


def rec_figures(pred_boxes: Tensor, true_boxes: Tensor) -> dict[str, float]:
    """Referring expression comprehension over [N, 4] boxes: `acc50`, `acc50_above` (IoU > 0.5), acc10 ... acc90, ...

    `centre` is lmms-eval's centre accuracy. A NaN row is wrong everywhere. NaN over no question.
    """
    iou = checked_iou(pred_boxes, true_boxes)
    figures = {f"acc{round(t * 100)}": (iou >= t).double().mean().item() for t in THRESHOLDS}
    figures["acc50_above"] = (iou > 0.5).double().mean().item()
    figures["centre"] = centre_inside(pred_boxes, true_boxes).double().mean().item()
    return figures | {"miou": iou.mean().item()}


class RECScores(Metric):
    """`rec_figures` over any number of updates and devices."""

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(THRESHOLDS) + 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred_boxes: Tensor, true_boxes: Tensor) -> None:
        """Add questions: boxes [N, 4], xyxy in [0, 1] of the displayed original image."""
        if len(pred_boxes):
            values = torch.tensor(list(rec_figures(pred_boxes, true_boxes).values()), dtype=torch.float64)
            self.sums += len(pred_boxes) * values.to(self.sums.device)
            self.count += len(pred_boxes)

    def compute(self) -> dict[str, Any]:
        names = [*(f"acc{round(t * 100)}" for t in THRESHOLDS), "acc50_above", "centre", "miou"]
        means = self.sums / self.count
        return {**dict(zip(names, means, strict=True)), "count": self.count}


def phrase_recall(pred_boxes: Sequence[Tensor], true_boxes: Sequence[Tensor], merged: bool) -> float:
    """Flickr30k Entities R@1: the first predicted box of a phrase overlaps its truth with IoU >= 0.5.

    `pred_boxes` [K, 4] and `true_boxes` [M, 4] of each phrase. `merged`: against the box around all M; otherwise
    against any of them. A phrase without a prediction is wrong.
    """
    right = 0
    for pred, true in zip(pred_boxes, true_boxes, strict=True):
        if not len(pred):
            continue
        if merged:
            true = torch.cat([true[:, :2].amin(0), true[:, 2:].amax(0)])[None]
        right += bool((checked_iou(pred[:1].expand(len(true), 4), true) >= 0.5).any())
    return right / len(true_boxes) if true_boxes else float("nan")
