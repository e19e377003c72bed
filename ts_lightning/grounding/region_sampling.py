"""Clicks, polygons and noisy boxes as a person would give them, drawn from annotated objects (ChatSpot 3.1 and 5.1)."""

import math
from collections.abc import Sequence
from random import Random

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.coordinates import Point
from ts_lightning.grounding.regions import Region

TRIES = 200


def click_in(outline: Sequence[Point], random: Random) -> Region:
    """A click, uniform inside the polygon `outline`; its centroid where the polygon has next to no area."""
    xs, ys = zip(*outline, strict=True)
    for _ in range(TRIES):
        point = random.uniform(min(xs), max(xs)), random.uniform(min(ys), max(ys))
        if contains(outline, point):
            return Region((point,))
    return Region(((sum(xs) / len(xs), sum(ys) / len(ys)),))


def contains(outline: Sequence[Point], point: Point) -> bool:
    """Whether `point` lies inside the polygon, by the parity of the edges to its right."""
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in zip(outline, [*outline[1:], outline[0]], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def polygon_around(box: Box, random: Random) -> Region:
    """A polygon of 4 to 7 points drawn by hand around an object: near the ellipse of its box, clipped."""
    corners = random.randint(4, 7)
    start = random.uniform(0, 2 * math.pi)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    points = []
    for corner in range(corners):
        angle = start + (corner + random.uniform(-0.25, 0.25)) * 2 * math.pi / corners
        radius = random.uniform(0.9, 1.25)
        u = x + radius * (box[2] - box[0]) / 2 * math.cos(angle)
        v = y + radius * (box[3] - box[1]) / 2 * math.sin(angle)
        points.append((min(max(u, 0.0), 1.0), min(max(v, 0.0), 1.0)))
    return Region(tuple(points))


def noisy_box(box: Box, scale: float, random: Random) -> Box:
    """`box` with each edge moved by a uniform share in [-scale, scale] of the box's side, clipped to the image.

    Below a scale of 0.5 edges never cross; ValueError for others.
    """
    if not 0 <= scale < 0.5:
        raise ValueError(f"box noise: seen scale {scale}, expected a number from 0 to below 0.5")
    wide, high = box[2] - box[0], box[3] - box[1]
    moved = [v + random.uniform(-scale, scale) * side for v, side in zip(box, (wide, high) * 2, strict=True)]
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in moved)
    return x1, y1, x2, y2
