"""The size that an image processor of Qwen2-VL's kind makes of a picture: boxes in resized pixels need it."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ts_lightning.grounding.coordinates import Size

MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280
FACTOR = 28  # patches of 14 pixels, 2 x 2 merged
WIDEST = 200  # the processor refuses pictures that are longer against their width


def smart_size(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """(width, height) that the image processor makes of a picture: multiples of `factor`, area within bounds."""
    width, height = size
    if max(size) > WIDEST * min(size):
        raise ValueError(f"image: seen {width} x {height} pixels, expected sides at most 1 : {WIDEST}")
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        wide, high = (max(factor, math.floor(side / scale / factor) * factor) for side in size)
    elif wide * high < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        wide, high = (math.ceil(side * scale / factor) * factor for side in size)
    return wide, high


def resize_rule(
    min_pixels: int | None = None, max_pixels: int | None = None, processor: str | Path | None = None
) -> Callable[[Size], Size]:
    """The rule that gives a picture's resized (width, height).

    `processor` is a folder with `preprocessor_config.json` (as saved beside a model). `min_pixels` and `max_pixels`,
    the bounds of the area, go over it; the default is `QwenVLBackbone`'s. ValueError for a folder without such a file.
    """
    factor, least, most = FACTOR, MIN_PIXELS, MAX_PIXELS
    if processor is not None:
        factor, least, most = _processor(Path(processor))
    return partial(smart_size, factor=factor, min_pixels=min_pixels or least, max_pixels=max_pixels or most)


def _processor(folder: Path) -> tuple[int, int, int]:
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        size = config.get("size") or {}
        least = config.get("min_pixels") or size["shortest_edge"]
        most = config.get("max_pixels") or size["longest_edge"]
        return int(config.get("patch_size", 14)) * int(config.get("merge_size", 2)), int(least), int(most)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: seen no min_pixels and max_pixels, expected the folder of a Qwen2-VL image processor"
        ) from None
