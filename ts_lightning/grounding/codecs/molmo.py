"""Molmo's notation: points in per cent, `<point x="10.5" y="20.3" alt="dog">dog</point>`; it has no boxes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs.base import NUMBER, Codec, Mention
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_POINT = re.compile(
    rf'<point\s{{1,3}}x="\s?({NUMBER})\s?"\s{{1,3}}y="\s?({NUMBER})\s?"(?:\s{{1,3}}alt="([^"<>]{{0,200}})")?\s?>'
    r"(?:([^<>]{0,200})</point>)?",
    re.ASCII,
)


@dataclass(frozen=True)
class MolmoCodec(Codec):
    """Per cent of the image's sides with one decimal; in [0, 1] that is three."""

    name: ClassVar[str] = "molmo"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("decimals:3", "original")
    kinds: ClassVar[tuple[str, ...]] = ("click",)

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return " ".join(self._point(region, image_size) for region in regions)

    def _point(self, region: Region, image_size: Size | None, phrase: str | None = None) -> str:
        x, y = (f"{100 * n:.1f}" for n in self.space.encode(region.points, image_size))
        named = phrase if phrase and not set(phrase) & set('"<>') and len(phrase) <= 200 else ""
        return f'<point x="{x}" y="{y}" alt="{named}">{named}</point>'

    def named(self, regions: Sequence[Box | Region], image_size: Size | None, phrase: str | None = None) -> str:
        if not phrase:
            return self.format(regions, image_size)
        known = [region if isinstance(region, Region) else Region.from_box(region) for region in regions]
        self.format(known, image_size)  # refuses what is no point
        return " ".join(self._point(region, image_size, phrase) for region in known)

    def canonical(self, mention: Mention, image_size: Size | None = None) -> str:
        return self._point(mention.regions[0], image_size, mention.phrase)

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in _POINT.finditer(text):
            region = self.region([float(n) / 100 for n in match.groups()[:2]], image_size)
            phrase = match[4] or match[3] or None
            found.append(Mention([region] if region else [], match.start(), match.end(), phrase=phrase))
        return found

    def coordinate_tokens(self) -> list[str]:
        return [*map(str, range(10)), "."]
