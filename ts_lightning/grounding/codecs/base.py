"""What every notation of regions shares: writing, lenient and strict reading."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

LARGEST = 1e6  # no image is larger; beyond it a number is nonsense, not a coordinate
NUMBER = r"-?\d{1,7}(?:\.\d{1,8})?"
_NUMBER = re.compile(NUMBER, re.ASCII)


class Mention(NamedTuple):
    """Regions written together, with the characters [start, end) that they were read from.

    `image` (0-based), `phrase` and `name` (an object's id) where the notation has them; `why` where nothing is read.
    `further` names what else is written of them, which is not kept.
    """

    regions: list[Region]
    start: int
    end: int
    image: int | None = None
    phrase: str | None = None
    name: str | None = None
    why: str | None = None
    further: tuple[str, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """The regions that are boxes."""
        return [region.box for region in self.regions if region.kind == "box"]


@dataclass(frozen=True)
class Codec:
    """One notation over one coordinate space.

    Subclasses write a region (`write`) and find the brackets of their notation in a text (`find`). Searches use bounded
    character classes that leave out their own opening mark: time is linear in the text, whatever it holds.
    """

    space: CoordinateSpace

    name: ClassVar[str]
    default_space: ClassVar[CoordinateSpace]
    kinds: ClassVar[tuple[str, ...]] = ("box",)
    special_tokens: ClassVar[tuple[str, ...]] = ()

    def format(self, regions: Sequence[Box | Region], image_size: Size | None = None) -> str:
        """Regions in [0, 1] as canonical text; ValueError for a kind that the notation can't say."""
        known = [region if isinstance(region, Region) else Region.from_box(region) for region in regions]
        for region in known:
            if region.kind not in self.kinds:
                raise ValueError(f"codec {self.name}: seen a {region.kind}, expected {' or '.join(self.kinds)}")
        return self.write(known, image_size)

    def parse(self, text: str, image_size: Size | None = None) -> list[Mention]:
        """Leniently, every bracket in text order that holds a well-formed region; never raises.

        Blanks, decimals and numbers beyond the grid (clipped) are accepted; reversed and empty boxes are not.
        """
        return [mention for mention in self.find(text, image_size) if mention.regions]

    def parse_strict(self, text: str, image_size: Size | None = None) -> list[Mention]:
        """Only the brackets that are canonical: written as `format` would write what they say."""
        return [m for m in self.parse(text, image_size) if self.is_canonical(m, text[m.start : m.end], image_size)]

    def is_canonical(self, mention: Mention, written: str, image_size: Size | None = None) -> bool:
        """Whether `mention` stands in the text exactly as it would be written."""
        return self.canonical(mention, image_size) == written

    def canonical(self, mention: Mention, image_size: Size | None = None) -> str:
        """What `mention` would be written as."""
        return self.format(mention.regions, image_size)

    def reference(
        self,
        regions: Sequence[Box | Region],
        image_size: Size | None,
        image: int = 0,
        number: int = 1,
        phrase: str | None = None,
        first: bool = True,
    ) -> str:
        """How an answer mentions the `number`-th object of picture `image`; `first` says that it is the first time."""
        return self.named(regions, image_size, phrase)

    def named(self, regions: Sequence[Box | Region], image_size: Size | None, phrase: str | None = None) -> str:
        """The regions with what they are, in a notation that has a place for it."""
        return self.format(regions, image_size)

    def takes_phrase(self, before: str, after: str) -> bool:
        """Whether a phrase with regions that stand between the texts `before` and `after` is read as theirs."""
        return True

    def coordinate_tokens(self) -> list[str]:
        """The texts that coordinates are made of, for `train_token_rows: codec`."""
        integers = {"100": 101, "1000": 1001}.get(self.space.grid, 10)
        return [*map(str, range(integers)), *self.marks()]

    def marks(self) -> list[str]:
        """Brackets and separators, each one token in a tokenizer made for the notation."""
        return [*self.special_tokens, ","]

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        """Canonical text of regions whose kinds are known to be right."""
        raise NotImplementedError

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        """Every bracket of the notation; its regions are empty where it holds none that is well-formed."""
        raise NotImplementedError

    def numbers(self, region: Region, image_size: Size | None, joint: str = ",") -> str:
        """A region's grid numbers x, y, x, y ..."""
        return joint.join(self.space.text(n) for n in self.space.encode(region.points, image_size))

    def region(self, numbers: Sequence[float], image_size: Size | None) -> Region | None:
        """The region of grid numbers x, y, x, y ...; None for an odd count, a reversed or an empty box, or nonsense."""
        if len(numbers) < 2 or len(numbers) % 2 or not all(abs(n) <= LARGEST for n in numbers):
            return None
        region = Region(tuple(self.space.decode(numbers, image_size)))
        if region.kind not in self.kinds:
            return None
        if region.kind == "box":
            (x1, y1), (x2, y2) = region.points
            return region if x2 > x1 and y2 > y1 else None
        return region


def read_numbers(text: str, separators: str = ", ") -> list[float]:
    """All numbers of `text`; [] where anything but numbers and separators is in it."""
    found = [float(n) for n in _NUMBER.findall(text)]
    rest = _NUMBER.sub("", text)
    return found if not rest.strip(separators + "\n\t") and all(map(math.isfinite, found)) else []
