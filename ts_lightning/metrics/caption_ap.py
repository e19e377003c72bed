"""COCO AP of grounded captions: (name, box) pairs, each name mapped to a class (TWIST & SCOUT 5.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

AP_NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L")


def coco_evaluation(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]
) -> Any:
    """COCO's evaluation of `image_ids` by faster-coco-eval, summarized. Equal scores keep the order of `results`."""
    from faster_coco_eval import COCO, COCOeval_faster

    nothing = {"image_id": image_ids[0], "category_id": 0, "bbox": [0, 0, 0, 0], "score": 0.0}  # it reads no empty list
    truth = COCO(dict(annotations))
    evaluation = COCOeval_faster(truth, truth.loadRes([dict(r) for r in results or [nothing]]), iouType="bbox")
    evaluation.params.imgIds = sorted(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def coco_figures(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]
) -> dict[str, float]:
    """COCO's twelve figures for `image_ids`; NaN where there is no such object (COCO's -1)."""
    stats = coco_evaluation(annotations, results, image_ids).stats
    return {name: known(value) for name, value in zip(AP_NAMES, stats[: len(AP_NAMES)], strict=True)}


def known(value: float) -> float:
    """A figure of COCO's; NaN for its -1."""
    return float("nan") if value == -1 else float(value)


class CaptionAP(Metric):
    """COCO AP over all captions, exact on any number of devices: the detections are gathered, not the figures.

    annotations: the COCO instances file as a dict. The score of a box is what `update` is given; captions have none of
    their own, so state which one you use (1 for all, or the similarity of the name to its class).
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]
    seen: list[Tensor]

    def __init__(self, annotations: Mapping[str, Any]) -> None:
        super().__init__()
        self.annotations = annotations
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(
        self,
        image_id: int,
        boxes_px: Sequence[Sequence[float]],
        category_ids: Sequence[int | None],
        scores: Sequence[float],
    ) -> None:
        """Add one caption: xyxy boxes in pixels; a None category (no class is similar enough) is left out."""
        rows = [
            [image_id, category, x1, y1, x2 - x1, y2 - y1, score]
            for (x1, y1, x2, y2), category, score in zip(boxes_px, category_ids, scores, strict=True)
            if category is not None
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).reshape(-1, 7))
        self.seen.append(torch.tensor([image_id], device=self.device))

    def compute(self) -> dict[str, float]:
        """COCO's twelve figures over the images that were captioned."""
        if not len(self.seen):
            return dict.fromkeys(AP_NAMES, 0.0)
        rows, seen = (torch.cat(s) if isinstance(s, list) else s for s in (self.rows, self.seen))
        results = [
            {"image_id": int(image), "category_id": int(category), "bbox": box, "score": score}
            for image, category, *box, score in rows.tolist()
        ]
        return coco_figures(self.annotations, results, sorted(set(seen.tolist())))
