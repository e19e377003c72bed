"""Regions in brackets: separated by semicolons, or as a list of lists between two marks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs.base import Codec, Mention, read_numbers
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_LISTS = r"\[\s{0,2}\[([0-9.,; -]{7,200}(?:\]\s{0,2},\s{0,2}\[[0-9.,; -]{7,200}){0,200})\]\s{0,2}\]"


@dataclass(frozen=True)
class SeparatedCodec(Codec):
    """`OPENINGx1,y1,x2,y2;...CLOSING`; `bracket` finds it, with the numbers as its first group."""

    opening: ClassVar[str]
    closing: ClassVar[str]
    bracket: ClassVar[re.Pattern[str]]

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return f"{self.opening}{';'.join(self.numbers(region, image_size) for region in regions)}{self.closing}"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in self.bracket.finditer(text):
            parts = [self.region(read_numbers(part), image_size) for part in match[1].split(";")]
            found.append(Mention([r for r in parts if r is not None], match.start(), match.end()))
        return found


@dataclass(frozen=True)
class BracketedCodec(Codec):
    """`OPENING[[x1, y1, x2, y2], ...]CLOSING`; the marks may be missing where a decoder drops special tokens."""

    opening: ClassVar[str] = ""
    closing: ClassVar[str] = ""
    joint: ClassVar[str] = ", "

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        inside = self.joint.join(f"[{self.numbers(region, image_size, self.joint)}]" for region in regions)
        return f"{self.opening}[{inside}]{self.closing}"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in self.pattern().finditer(text):
            parts = [self.region(read_numbers(part), image_size) for part in re.split(r"\]\s*,\s*\[", match["boxes"])]
            phrase = match.groupdict().get("phrase")
            found.append(Mention([r for r in parts if r], match.start(), match.end(), phrase=phrase or None))
        return found

    def pattern(self) -> re.Pattern[str]:
        """What a bracket looks like, with the group `boxes` and perhaps `phrase`."""
        raise NotImplementedError

    def marks(self) -> list[str]:
        return [*self.special_tokens, "[", "]", ","]


def _between(opening: str, closing: str, before: str = "") -> re.Pattern[str]:
    lists = _LISTS.replace("(", "(?P<boxes>", 1)
    return re.compile(rf"{before}(?:{re.escape(opening)}\s{{0,2}})?{lists}(?:\s{{0,2}}{re.escape(closing)})?", re.ASCII)


_INTERNVL = _between("<box>", "</box>", r"(?:<ref>(?P<phrase>[^<]{1,200})</ref>\s{0,2})?")
_GLM = _between("<|begin_of_box|>", "<|end_of_box|>")


@dataclass(frozen=True)
class InternVLCodec(BracketedCodec):
    """`<ref>dog</ref><box>[[x1, y1, x2, y2]]</box>`, integers 0-1000 of the image; without a phrase no `<ref>`."""

    name: ClassVar[str] = "internvl"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")
    special_tokens: ClassVar[tuple[str, ...]] = ("<ref>", "</ref>", "<box>", "</box>")
    opening: ClassVar[str] = "<box>"
    closing: ClassVar[str] = "</box>"

    def pattern(self) -> re.Pattern[str]:
        return _INTERNVL

    def named(self, regions: Sequence[Box | Region], image_size: Size | None, phrase: str | None = None) -> str:
        named = f"<ref>{phrase}</ref>" if phrase and "<" not in phrase and len(phrase) <= 200 else ""
        return named + self.format(regions, image_size)

    def canonical(self, mention: Mention, image_size: Size | None = None) -> str:
        return self.named(mention.regions, image_size, mention.phrase)


@dataclass(frozen=True)
class GLMCodec(BracketedCodec):
    """`<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>`, integers 0-1000 of the image (GLM-4.1V and later)."""

    name: ClassVar[str] = "glm"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")
    special_tokens: ClassVar[tuple[str, ...]] = ("<|begin_of_box|>", "<|end_of_box|>")
    opening: ClassVar[str] = "<|begin_of_box|>"
    closing: ClassVar[str] = "<|end_of_box|>"
    joint: ClassVar[str] = ","

    def pattern(self) -> re.Pattern[str]:
        return _GLM
