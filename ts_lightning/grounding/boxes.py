"""Boxes: float xyxy in [0, 1] of the displayed original image."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]


def check_box(box: Sequence[float], where: str) -> Box:
    """Return `box` as a tuple, or raise ValueError naming `where` for a wrong length, NaN, reversed or outside box."""
    values = tuple(float(v) for v in box)
    if len(values) != 4:
        raise ValueError(f"{where}: seen {len(values)} numbers {values}, expected a box of 4 (x1, y1, x2, y2)")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{where}: seen a box with NaN or infinity {values}, expected finite numbers")
    x1, y1, x2, y2 = values
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{where}: seen a reversed or empty box {values}, expected x1 < x2 and y1 < y2")
    if min(values) < -1e-6 or max(values) > 1 + 1e-6:
        raise ValueError(f"{where}: seen a box outside the image {values}, expected values in [0, 1]")
    return x1, y1, x2, y2


def area(box: Sequence[float]) -> float:
    """Area in the box's own units; 0 for a reversed box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes, 0 where the union is empty."""
    inter = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - inter
    return inter / union if union > 0 else 0.0
