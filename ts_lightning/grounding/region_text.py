"""A record's region as a notation writes it in a text: what a model is trained on, and what other tools get."""

from collections.abc import Callable
from typing import Any

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.regions import Region


def region_text(
    codec: Codec,
    sample: Any,
    index: int,
    before: str,
    after: str,
    mentioned: set[int] | None = None,
    escape: Callable[[str], str] = str,
) -> str:
    """What stands for the mark of region `index` between the texts `before` and `after`.

    In a question (`mentioned` None) that is where it is. In an answer it is also what it is and its number, where the
    notation says them, and it joins `mentioned`, the regions that were named before. ValueError names the mark.
    """
    region = sample.regions[index]
    size = (sample.images[region.image].width, sample.images[region.image].height)
    if region.boxes is not None or region.box is not None:
        places = [Region.from_box(box) for box in (region.boxes if region.box is None else [region.box])]
    else:
        places = [Region(tuple(region.points or region.polygon))]
    try:
        if mentioned is None:
            return codec.format(places, size)
        number = 1 + sum(earlier.image == region.image for earlier in sample.regions[:index])
        first = index not in mentioned
        mentioned.add(index)
        phrase = escape(region.phrase) if region.phrase and codec.takes_phrase(before, after) else None
        return codec.reference(places, size, region.image, number, phrase, first)
    except ValueError as error:
        raise ValueError(f"{{region:{index}}}: {error}") from None
