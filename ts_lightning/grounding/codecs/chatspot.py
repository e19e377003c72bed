"""ChatSpot's notation: `<box>x,y,x,y,...</box>`, as many points as the region has (section 3.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.base import Codec, Mention, read_numbers
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_BRACKET = re.compile(r"<box>([0-9.,; ()-]{3,20000})</box>", re.ASCII)


@dataclass(frozen=True)
class ChatSpotCodec(Codec):
    """Numbers in [0, 1] of the original image; the paper doesn't say how many decimals, we write three."""

    name: ClassVar[str] = "chatspot"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("decimals:3", "original")
    kinds: ClassVar[tuple[str, ...]] = ("click", "box", "polygon")
    special_tokens: ClassVar[tuple[str, ...]] = ("<box>", "</box>")

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return "".join(f"<box>{self.numbers(region, image_size)}</box>" for region in regions)

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in _BRACKET.finditer(text):
            region = self.region(read_numbers(match[1], ",; ()"), image_size)
            found.append(Mention([region] if region else [], match.start(), match.end()))
        return found
