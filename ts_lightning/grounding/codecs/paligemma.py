"""PaliGemma's notation: four tokens `<loc0000>`, y first, the label behind them; several boxes stand between ` ; `."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs.base import Codec, Mention
from ts_lightning.grounding.codecs.gemma import y_first
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_TOKENS = r"(?:<loc[0-9]{4}>\s{0,2}){4}"
_LABEL = r"\w[^<;\n]{0,79}?"
# a label belongs to a list of boxes; behind a box in the middle of a text the text goes on
_BEFORE, _AFTER = r"(?:\A|(?<=[\n;]))\s{0,4}", r"\s{0,4}(?:;|\n|\Z)"
_BOX = re.compile(rf"{_BEFORE}({_TOKENS})(?<=\s)({_LABEL})(?={_AFTER})|({_TOKENS})")
_NUMBER = re.compile(r"[0-9]{4}", re.ASCII)


@dataclass(frozen=True)
class PaliGemmaCodec(Codec):
    """`<loc0100><loc0200><loc0500><loc0900> dog`: 0-1023 of the image from edge to edge."""

    name: ClassVar[str] = "paligemma"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1023", "original")
    special_tokens: ClassVar[tuple[str, ...]] = tuple(f"<loc{n:04d}>" for n in range(1024))

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return " ; ".join(self._tokens(region, image_size) for region in regions)

    def _tokens(self, region: Region, image_size: Size | None) -> str:
        return "".join(f"<loc{int(n):04d}>" for n in y_first(self.space.encode(region.points, image_size)))

    def named(self, regions: Sequence[Box | Region], image_size: Size | None, phrase: str | None = None) -> str:
        phrase = (phrase or "").strip()
        label = f" {phrase}" if re.fullmatch(_LABEL, phrase) else ""
        return " ; ".join(f"{self.format([region], image_size)}{label}" for region in regions)

    def takes_phrase(self, before: str, after: str) -> bool:
        return bool(re.search(rf"{_BEFORE}\Z", before) and re.match(_AFTER, after))

    def canonical(self, mention: Mention, image_size: Size | None = None) -> str:
        return self.named(mention.regions, image_size, mention.phrase)

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in _BOX.finditer(text):
            start, tokens = match.start(1 if match[1] else 3), match[1] or match[3]
            label = (match[2] or "").strip()
            region = self.region(y_first([float(n) for n in _NUMBER.findall(tokens)]), image_size)
            end = match.end(2) if label else start + len(tokens.rstrip())
            found.append(Mention([region] if region else [], start, end, phrase=label or None))
        return found

    def coordinate_tokens(self) -> list[str]:
        return list(self.special_tokens)
