"""TWIST & SCOUT's notation: `[[x1,y1,x2,y2]]`, several boxes as `[[a;b]]` or as `[[a]], [[b]]`."""

import re
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.bracketed import SeparatedCodec
from ts_lightning.grounding.coordinates import CoordinateSpace


@dataclass(frozen=True)
class ScoutCodec(SeparatedCodec):
    """Integers 0-100 of the original image (appendix A)."""

    name: ClassVar[str] = "scout"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("100", "original")
    opening: ClassVar[str] = "[["
    closing: ClassVar[str] = "]]"
    bracket: ClassVar[re.Pattern[str]] = re.compile(r"\[\[([0-9.,; -]{7,4000})\]\]", re.ASCII)

    def marks(self) -> list[str]:
        return ["[[", " [[", "]]", ",", ";"]
