"""TWIST & SCOUT's notation: `[[x1,y1,x2,y2]]`, several boxes as `[[a;b]]` or as `[[a]], [[b]]`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ts_lightning.grounding.codecs.base import Codec, Mention, read_numbers
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_BRACKET = re.compile(r"\[\[([0-9.,; -]{7,4000})\]\]", re.ASCII)


@dataclass(frozen=True)
class ScoutCodec(Codec):
    """Integers 0-100 of the original image (appendix A)."""

    name: ClassVar[str] = "scout"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("100", "original")
    space: CoordinateSpace = field(default_factory=lambda: ScoutCodec.default_space)

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return f"[[{';'.join(self.numbers(region, image_size) for region in regions)}]]"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in _BRACKET.finditer(text):
            parts = [self.region(read_numbers(part), image_size) for part in match[1].split(";")]
            found.append(Mention([r for r in parts if r is not None], match.start(), match.end()))
        return found

    def marks(self) -> list[str]:
        return ["[[", " [[", "]]", ",", ";"]
