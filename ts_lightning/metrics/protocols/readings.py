"""Readings of raw numbers: what an answer would score if its numbers were meant in another grid or frame."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.metrics import box_iou, box_tensor

Record = Mapping[str, Any]
_NUMBER = r"(-?\d{1,7}(?:\.\d{1,8})?)"
_QUAD = re.compile(rf"{_NUMBER}[\s,]{{1,3}}{_NUMBER}[\s,()\[\]]{{1,6}}{_NUMBER}[\s,]{{1,3}}{_NUMBER}", re.ASCII)


def _scaled(by: float) -> Callable[[Sequence[float], float, float], Sequence[float]]:
    return lambda quad, width, height: [value / by for value in quad]


def _pixels(quad: Sequence[float], width: float, height: float) -> Sequence[float]:
    return [value / side for value, side in zip(quad, (width, height) * 2, strict=True)]


def _padded(by: float) -> Callable[[Sequence[float], float, float], Sequence[float]]:
    def read(quad: Sequence[float], width: float, height: float) -> Sequence[float]:
        side = max(width, height)
        return [
            (value / by * side - (side - length) / 2) / length
            for value, length in zip(quad, (width, height) * 2, strict=True)
        ]

    return read


READINGS: dict[str, Callable[[Sequence[float], float, float], Sequence[float]]] = {
    "0-1 of the original": _scaled(1),
    "0-100 of the original": _scaled(100),
    "0-1000 of the original": _scaled(1000),
    "pixels of the original": _pixels,
    "0-1 of the padded square": _padded(1),
    "0-100 of the padded square": _padded(100),
    "0-1000 of the padded square": _padded(1000),
}


def quads(text: str) -> list[list[float]]:
    """Every four numbers in a row of a text; at most 100."""
    return [[float(n) for n in match.groups()] for match, _ in zip(_QUAD.finditer(text), range(100), strict=False)]


def read_as(reading: str, quad: Sequence[float], size: Sequence[float]) -> Box | None:
    """The box of four numbers under one of `READINGS`, clipped to the picture; None if it is reversed or outside."""
    x1, y1, x2, y2 = (min(1.0, max(0.0, v)) for v in READINGS[reading](quad, size[0], size[1]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def oracle_iou(record: Record) -> float:
    """The best IoU of any box of the answer under any reading: what inflated scorers report. 0 without a box."""
    true, size = record["truth"]["box"], record["image_size"]
    boxes = [read_as(name, quad, size) for quad in quads(record["text"]) for name in READINGS] + [record.get("box")]
    return max((iou(box, true) for box in boxes if box is not None), default=0.0)


def reading_scores(records: Sequence[Record]) -> dict[str, float]:
    """Acc@0.5 of each answer's first four numbers under each of `READINGS`."""
    scores = {}
    true = box_tensor([record["truth"]["box"] for record in records])
    firsts = [(quads(record["text"])[:1], record["image_size"]) for record in records]
    for name in READINGS:
        pred = box_tensor([read_as(name, quad[0], size) if quad else None for quad, size in firsts])
        scores[name] = (box_iou(pred, true) >= 0.5).double().mean().item() if records else float("nan")
    return scores


def frame_warning(records: Sequence[Record], strict: float) -> str | None:
    """One line where another reading of the numbers scores far better than the declared one; None where none does."""
    if len(records) < 10:
        return None
    name, best = max(reading_scores(records).items(), key=lambda item: item[1])
    if best < strict + 0.2 or best < 2 * strict:
        return None
    return (
        f"read as {name}, the answers would score {best:.3f} instead of {strict:.3f}: they look written in that frame"
    )
