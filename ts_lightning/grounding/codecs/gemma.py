"""Gemma's notation: JSON with `box_2d`, y first, numbers 0-1000 of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.base import Mention
from ts_lightning.grounding.codecs.qwen import Qwen25VLCodec
from ts_lightning.grounding.codecs.qwen_json import json_objects
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region


@dataclass(frozen=True)
class GemmaCodec(Qwen25VLCodec):
    """`{"box_2d": [y1, x1, y2, x2], "label": ...}`, points as `{"point": [y, x]}`, integers 0-1000."""

    name: ClassVar[str] = "gemma"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")
    box_key: ClassVar[str] = "box_2d"
    point_key: ClassVar[str] = "point"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = json_objects(text, (self.box_key, self.point_key))
        regions = [self.known([y_first(n) for n in one.numbers], one.key == self.box_key, image_size) for one in found]
        return self.mentions(found, regions)

    def numbers(self, region: Region, image_size: Size | None, joint: str = ",") -> str:
        return joint.join(self.space.text(n) for n in y_first(self.space.encode(region.points, image_size)))


def y_first(numbers: Sequence[float]) -> list[float]:
    """x, y, x, y ... as y, x, y, x ..., and back; a list of odd length stays odd."""
    swapped = [n for i in range(0, len(numbers) - 1, 2) for n in (numbers[i + 1], numbers[i])]
    return [*swapped, *numbers[len(swapped) :]]
