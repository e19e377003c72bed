"""What the numbers of an answer would score if they were meant in another grid or frame."""

import re
from collections.abc import Sequence
from typing import Any

from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.metrics.record import Record

_NUMBER = r"(-?\d{1,7}(?:\.\d{1,8})?)"
_QUAD = re.compile(rf"{_NUMBER}[\s,]{{1,3}}{_NUMBER}[\s,()\[\]]{{1,6}}{_NUMBER}[\s,]{{1,3}}{_NUMBER}", re.ASCII)
_UNITS = {"100": "0-100", "999": "0-1000", "1000": "0-1000", "pixels": "pixels"}

SPACES: dict[str, CoordinateSpace] = {
    "0-1 of the original": CoordinateSpace("decimals:3", "original"),
    "0-100 of the original": CoordinateSpace("100", "original"),
    "0-1000 of the original": CoordinateSpace("1000", "original"),
    "pixels of the original": CoordinateSpace("pixels", "original"),
    "0-1 of the padded square": CoordinateSpace("decimals:3", "padded_square"),
    "0-100 of the padded square": CoordinateSpace("100", "padded_square"),
    "0-1000 of the padded square": CoordinateSpace("1000", "padded_square"),
}


def quads(text: str) -> list[list[float]]:
    """Every four numbers in a row of a text; at most 100."""
    return [[float(n) for n in match.groups()] for match, _ in zip(_QUAD.finditer(text), range(100), strict=False)]


def read_as(name: str, quad: Sequence[float], size: Size) -> Box | None:
    """The box of four numbers in one of `SPACES`, clipped to the picture; None if it is reversed or outside."""
    (x1, y1), (x2, y2) = SPACES[name].decode(quad, size)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def oracle_iou(record: Record) -> float:
    """The best IoU of any box of the answer under any reading: what inflated scorers report. 0 without a box."""
    assert record.truth.box is not None
    boxes = [read_as(name, quad, record.size) for quad in quads(record.text) for name in SPACES] + [record.answer.box]
    return max((iou(box, record.truth.box) for box in boxes if box is not None), default=0.0)


def readings_right(record: Record) -> list[bool]:
    """For each of `SPACES` whether the answer's first four numbers, read so, are right (IoU >= 0.5)."""
    assert record.truth.box is not None
    first = quads(record.text)[:1]
    boxes = [read_as(name, first[0], record.size) if first else None for name in SPACES]
    return [box is not None and iou(box, record.truth.box) >= 0.5 for box in boxes]


def declared_space(record: Record) -> str:
    """The name in `SPACES` of the record's own frame."""
    frame = "padded square" if record.frame == "padded_square" else record.frame
    return f"{_UNITS.get(record.grid, '0-1')} of the {frame}"


def frame_warning(rows: Sequence[dict[str, Any]], lenient: float) -> str | None:
    """One line where another reading of the numbers scores far better than the declared one, read leniently too.

    `rows` have `readings` and `declared`; None where no reading does, and for fewer than 10 questions.
    """
    if len(rows) < 10:
        return None
    shares = {name: sum(row["readings"][i] for row in rows) / len(rows) for i, name in enumerate(SPACES)}
    others = {name: share for name, share in shares.items() if any(row["declared"] != name for row in rows)}
    name, best = max(others.items(), key=lambda item: item[1])
    if best < lenient + 0.2 or best < 2 * lenient:
        return None
    return (
        f"read as {name}, the answers would score {best:.3f} instead of {lenient:.3f}: they look written in that frame"
    )
