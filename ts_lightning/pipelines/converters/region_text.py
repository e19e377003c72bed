"""Questions about the text in a region: what COCO-Text, HierText and ArT share."""

from collections.abc import Sequence
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.converters.source import NO_BOX, Picture, Pictures, clean, make, pick


def reading(
    source: str,
    key: str,
    picture: Picture,
    text: str,
    place: Box | Sequence[tuple[float, float]] | None,
    pictures: Pictures,
    template: str,
    **meta: Any,
) -> Sample | None:
    """A question for the text inside a box or polygon ([0, 1]); None, counted, for no place or no legible text."""
    words = clean(text)
    if not words.strip():
        pictures.dropped.note("texts that are empty or not legible", key, stops=False)
        return None
    if place is None:
        pictures.dropped.note(NO_BOX, key)
        return None
    if len(place) == 4 and isinstance(place[0], int | float):
        region = SampleRegion(phrase=words, box=tuple(place))  # type: ignore[arg-type]
    else:
        region = SampleRegion(phrase=words, polygon=list(place))  # type: ignore[arg-type]
    return make(
        source,
        key,
        [picture],
        [(pick(template, key, region="{region:0}"), words)],
        subtask="region_ocr",
        tags=["region", "box" if region.box else "polygon", "contains"],
        regions=[region],
        answer=words,
        answers=[words],
        meta=meta,
    )


def polygon(points: Sequence[Sequence[float]], size: tuple[int, int]) -> list[tuple[float, float]] | None:
    """Pixel points clipped to the picture, in [0, 1]; None for fewer than three, or no area."""
    if len(points) < 3 or not all(
        len(p) == 2 and all(isinstance(v, int | float) and v == v for v in p) for p in points
    ):
        return None
    made = [(min(max(x / size[0], 0.0), 1.0), min(max(y / size[1], 0.0), 1.0)) for x, y in points]
    return made if area(made) > 1e-12 else None


def area(points: Sequence[tuple[float, float]]) -> float:
    """The area of a polygon."""
    turns = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in turns)) / 2
