"""In which frame were these boxes labelled? Every wrong frame leaves traces in the boxes alone.

A box labelled in another frame and read as [0, 1] of the original image lies inside that frame's part of the image, and
boxes of objects cut by the image's border pile up on that part's border.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.coordinates import CoordinateSpace, Size

TOLERANCE = 0.008  # of the image: labels are rounded to pixels
ENOUGH = 0.98  # share of boxes that have to lie inside a frame's part
ON_BORDER = 0.01  # share of boxes that have to lie on its border
MIN_IMAGES = 50
RIGHT = "original"
PADDED = CoordinateSpace("decimals:9", "padded_square")


class Labelled(NamedTuple):
    """A box as a record holds it (it may be wrong), and its image."""

    box: Sequence[float]
    size: Size
    image: str


class FrameReport(NamedTuple):
    """`inside`: share of boxes that lie where the frame allows; `border`: share on the border that is its own.

    `coincides`: on these images the frame is the same as the original one.
    """

    inside: float
    border: float
    coincides: bool


def pixels_as_1000(size: Size, resized: Size) -> Box:
    """Pixel boxes divided by 1000."""
    return 0, 0, size[0] / 1000, size[1] / 1000


def padded_as_original(size: Size, resized: Size) -> Box:
    """Boxes of the padded square, divided by its side."""
    left, top, right, bottom = PADDED.encode(((0.0, 0.0), (1.0, 1.0)), size)
    return left, top, right, bottom


def resized_as_original(size: Size, resized: Size) -> Box:
    """Pixels of the resized image, divided by the original's size."""
    return 0, 0, resized[0] / size[0], resized[1] / size[1]


# Most telling first: the smaller the part, the less likely do right boxes lie in it by chance.
PARTS: dict[str, Callable[[Size, Size], Box]] = {
    "absolute pixels read as 0-1000": pixels_as_1000,
    "padded square read as original": padded_as_original,
    "resized pixels read as original": resized_as_original,
}
XYWH = "xywh read as xyxy"


def frame_reports(labels: Sequence[Labelled], resize: Callable[[Size], Size]) -> dict[str, FrameReport]:
    """What speaks for each frame; `resize` gives the size that the image processor makes of an image."""
    if not labels:
        return {}
    whole = [_inside(label.box, (0, 0, 1, 1)) and _ordered(label.box) for label in labels]
    reports = {RIGHT: FrameReport(_share(whole), 0.0, True)}
    for name, part in PARTS.items():
        parts = [part(label.size, resize(label.size)) for label in labels]
        pairs = list(zip(labels, parts, strict=True))
        inside = [_inside(label.box, p) and _ordered(label.box) for label, p in pairs]
        border = [_on_own_border(label.box, p) for label, p in pairs]
        differs = _share([max(abs(a - b) for a, b in zip(p, (0, 0, 1, 1), strict=True)) > 0.02 for p in parts])
        reports[name] = FrameReport(_share(inside), _share(border), differs < 0.1)
    sums = [(label.box[0] + label.box[2], label.box[1] + label.box[3]) for label in labels]
    fits = [_inside(label.box, (0, 0, 1, 1)) and max(s) <= 1 + TOLERANCE for label, s in zip(labels, sums, strict=True)]
    on_border = [min(abs(s[0] - 1), abs(s[1] - 1)) < TOLERANCE for s in sums]
    reports[XYWH] = FrameReport(_share(fits), _share(on_border), False)
    return reports


def verdict(labels: Sequence[Labelled], reports: dict[str, FrameReport], resize: Callable[[Size], Size]) -> str:
    """`original`, the name of the wrong frame, or "cannot tell: why"."""
    images = len({label.image for label in labels})
    if images < MIN_IMAGES:
        return f"cannot tell: seen {images} images with boxes, expected at least {MIN_IMAGES}"
    fitting = {name: r for name, r in reports.items() if name != RIGHT and r.inside >= ENOUGH and not r.coincides}
    named = [name for name, report in fitting.items() if report.border >= ON_BORDER]
    if named:
        return min(named, key=lambda name: _chance(name, labels, resize))
    if reports[RIGHT].inside < ENOUGH:
        return (
            f"cannot tell: {1 - reports[RIGHT].inside:.0%} of the boxes are impossible, and no known frame explains it"
        )
    if fitting:
        return f"cannot tell original from {' or '.join(fitting)}: no box reaches the border of either"
    same = [name for name, report in reports.items() if name != RIGHT and report.coincides]
    return f"cannot tell original from {' or '.join(same)}: they are the same on these images" if same else RIGHT


def _chance(name: str, labels: Sequence[Labelled], resize: Callable[[Size], Size]) -> float:
    """How likely a right box would fit the frame by chance: both of its corners have to lie in the part."""
    if name == XYWH:
        return 0.25
    parts = [PARTS[name](label.size, resize(label.size)) for label in labels]
    return sum((min(p[2], 1) - max(p[0], 0)) * (min(p[3], 1) - max(p[1], 0)) for p in parts) ** 2 / len(parts) ** 2


def _ordered(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _inside(box: Sequence[float], part: Box) -> bool:
    xs, ys = (box[0], box[2]), (box[1], box[3])
    return (
        min(xs) >= part[0] - TOLERANCE
        and max(xs) <= part[2] + TOLERANCE
        and min(ys) >= part[1] - TOLERANCE
        and max(ys) <= part[3] + TOLERANCE
    )


def _on_own_border(box: Sequence[float], part: Box) -> bool:
    """Whether a side of the box lies on a border of the part that is not the image's own."""
    return any(
        abs(value - edge) < TOLERANCE and abs(edge - image_edge) > 2 * TOLERANCE
        for value, edge, image_edge in zip(box, part, (0, 0, 1, 1), strict=True)
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
