"""Mean IoU of single-box answers. Shapes: N questions; boxes are xyxy in [0, 1] of the displayed original image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ts_lightning.grounding.boxes import Box

MEDIUM_AREA_PX = 32.0**2
LARGE_AREA_PX = 96.0**2


def box_tensor(boxes: Sequence[Box | None]) -> Tensor:
    """Boxes as a float64 tensor [N, 4]; None (missing or unparsable) becomes a row of NaN."""
    rows = [(math.nan,) * 4 if box is None else tuple(box) for box in boxes]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def box_iou(pred_boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """IoU of boxes [..., 4] that broadcast against each other -> [...] in float64; 0 for a NaN or an empty union."""
    pred, true = pred_boxes.double(), true_boxes.double()
    inter = _area(
        torch.cat([torch.maximum(pred[..., :2], true[..., :2]), torch.minimum(pred[..., 2:], true[..., 2:])], -1)
    )
    union = _area(pred) + _area(true) - inter
    return torch.where(union > 0, inter / union, 0.0)


def _area(boxes: Tensor) -> Tensor:
    width_height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return width_height[..., 0] * width_height[..., 1]


def checked_iou(pred_boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """`box_iou` of two [N, 4] tensors; ValueError for other shapes and for a true box that is not finite."""
    if pred_boxes.shape != true_boxes.shape or pred_boxes.shape[1:] != (4,):
        seen = f"{list(pred_boxes.shape)} and {list(true_boxes.shape)}"
        raise ValueError(f"pred_boxes, true_boxes: seen shapes {seen}, expected the same [N, 4]")
    if not torch.isfinite(true_boxes).all():
        raise ValueError("true_boxes: seen NaN or infinity, expected finite boxes (only predictions may be missing)")
    return box_iou(pred_boxes, true_boxes)


class MeanIoU(Metric):
    """Mean IoU over all questions, and over those whose object is medium or large.

    A missing or unparsable prediction (a NaN row) counts 0. Medium is 32^2 <= area <= 96^2 and large is area > 96^2
    pixels of the original image; smaller objects count in `miou` alone. A mean over nothing is NaN.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, dtype in (("total", torch.float64), ("count", torch.int64)):
            self.add_state(name, torch.zeros(3, dtype=dtype), dist_reduce_fx="sum")

    def update(
        self, pred_boxes: Tensor, true_boxes: Tensor, image_sizes: Tensor, area_px: Tensor | None = None
    ) -> None:
        """Add questions: boxes [N, 4], image_sizes [N, 2] (width, height) in pixels.

        area_px: [N] object areas where the data set names them (COCO's are of the mask); NaN or None: the true box's.
        """
        iou = checked_iou(pred_boxes, true_boxes)
        box_area = _area(true_boxes.double()) * image_sizes.double().prod(dim=1)
        area = box_area if area_px is None else torch.where(area_px.isnan(), box_area, area_px.double())
        medium = (area >= MEDIUM_AREA_PX) & (area <= LARGE_AREA_PX)
        chosen_N3 = torch.stack([torch.ones_like(medium), medium, area > LARGE_AREA_PX], dim=1)
        self.total += (iou.unsqueeze(1) * chosen_N3).sum(dim=0).to(self.total.device)
        self.count += chosen_N3.sum(dim=0).to(self.count.device)

    def compute(self) -> dict[str, Tensor]:
        miou, medium, large = self.total / self.count
        return {"miou": miou, "miou_medium": medium, "miou_large": large, "count": self.count[0]}
