"""Questions for the category of an annotated object that a click, a box or a polygon points at (ChatSpot 3.2)."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.coordinates import Point
from ts_lightning.grounding.region_sampling import click_in, polygon_around
from ts_lightning.pipelines.converters.region_text import area, polygon
from ts_lightning.pipelines.converters.source import Picture, make, pick

KINDS = ("click", "box", "polygon")
CORNERS = 20  # of a polygon at most: COCO's outlines have up to hundreds, and each corner is a dozen tokens


def check_kind(region: str) -> None:
    """ValueError for a kind of region that can't be drawn."""
    if region not in (*KINDS, "mixed"):
        raise ValueError(f"region: seen {region!r}, expected {', '.join(KINDS)} or mixed")


def category_question(
    source: str,
    key: str,
    picture: Picture,
    one: dict[str, Any],
    box: Box,
    category: str | None,
    template: str,
    region: str,
    seed: int,
    meta: dict[str, Any],
) -> Sample:
    """What is the object of a COCO annotation? `region` is a kind or "mixed"; drawn from (seed, source, key) alone."""
    random = Random(f"{seed} {source}/{key}")
    kind = random.choice(KINDS) if region == "mixed" else region
    place = point_at(box, outline(one, (picture[0].width, picture[0].height)), kind, random)
    return make(
        source,
        key,
        [picture],
        [(pick(template, key, region="{region:0}"), category or "unknown")],
        subtask="region_class",
        tags=["region", kind],
        regions=[SampleRegion(category=category, **place)],
        answer=category,
        meta=meta,
    )


def point_at(box: Box, known: Sequence[Point] | None, kind: str, random: Random) -> dict[str, Any]:
    """A region's field for an object with this box, and this outline where one is known."""
    if kind == "click":
        x1, y1, x2, y2 = box
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        diamond = [(x, y1), (x2, y), (x, y2), (x1, y)]  # a box's corners are mostly background
        return {"points": list(click_in(known or diamond, random).points)}
    if kind == "polygon":
        drawn = known or polygon_around(box, random).points
        return {"polygon": list(drawn[:: math.ceil(len(drawn) / CORNERS)])}
    return {"box": box}


def outline(one: dict[str, Any], size: tuple[int, int]) -> list[Point] | None:
    """The largest polygon of a COCO segmentation, in [0, 1]; None for a mask, or where there is none."""
    parts = one.get("segmentation")
    flat = [part for part in parts if isinstance(part, list)] if isinstance(parts, list) else []
    made = [polygon(list(zip(part[::2], part[1::2], strict=False)), size) for part in flat]
    return max((part for part in made if part is not None), key=area, default=None)
