"""Shikra's notation: `[x1,y1,x2,y2]` with three decimals, several as `[a;b]`, a point as `[x,y]`."""

import re
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.bracketed import SeparatedCodec
from ts_lightning.grounding.coordinates import CoordinateSpace


@dataclass(frozen=True)
class ShikraCodec(SeparatedCodec):
    """Numbers in [0, 1] of the image centred on a padded square."""

    name: ClassVar[str] = "shikra"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("decimals:3", "padded_square")
    opening: ClassVar[str] = "["
    closing: ClassVar[str] = "]"
    bracket: ClassVar[re.Pattern[str]] = re.compile(r"\[([0-9.,; -]{3,4000})\]", re.ASCII)
    kinds: ClassVar[tuple[str, ...]] = ("click", "box")

    def marks(self) -> list[str]:
        return ["[", "]", ",", ";", "."]
