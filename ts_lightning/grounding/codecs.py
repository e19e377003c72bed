"""Box notations: how boxes are written in prompts and answers, and read back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.coordinates import CoordinateSpace, Size


class ParsedBoxes(NamedTuple):
    """Boxes of one bracket, with the character span [start, end) that they were read from."""

    boxes: list[Box]
    start: int
    end: int


@dataclass(frozen=True)
class ScoutCodec:
    """TWIST & SCOUT's notation: `[[x1,y1,x2,y2]]`, several boxes as `[[a;b]]` or as `[[a]], [[b]]`."""

    space: CoordinateSpace = field(default_factory=lambda: CoordinateSpace("100", "original"))

    # Bounded repetitions keep the search linear in the text's length.
    _bracket = re.compile(r"\[\[([0-9.,; ]{7,4000})\]\]", re.ASCII)

    def format(self, boxes: Sequence[Box], image_size: Size | None = None) -> str:
        """Boxes in [0, 1] as canonical text; several are written inside one bracket."""
        return f"[[{';'.join(self._numbers(box, image_size) for box in boxes)}]]"

    def parse(self, text: str, image_size: Size | None = None) -> list[ParsedBoxes]:
        """Every bracket in text order that holds at least one well-formed box; never raises."""
        found = []
        for match in self._bracket.finditer(text):
            boxes = [box for part in match[1].split(";") if (box := self._box(part, image_size)) is not None]
            if boxes:
                found.append(ParsedBoxes(boxes, match.start(), match.end()))
        return found

    def coordinate_tokens(self) -> list[str]:
        """The texts that coordinates are made of, for `train_token_rows: codec`."""
        return [str(n) for n in range(101)] + ["[[", " [[", "]]", ",", ";"]

    def _numbers(self, box: Box, image_size: Size | None) -> str:
        numbers = self.space.encode([(box[0], box[1]), (box[2], box[3])], image_size)
        return ",".join(self.space.text(n) for n in numbers)

    def _box(self, part: str, image_size: Size | None) -> Box | None:
        try:
            numbers = [float(n) for n in part.split(",")]
        except ValueError:
            return None
        if len(numbers) != 4 or max(numbers) > 1e6:
            return None
        (x1, y1), (x2, y2) = self.space.decode(numbers, image_size)
        return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


CODECS = {"scout": ScoutCodec}


def get_codec(name: str, space: CoordinateSpace | None = None) -> ScoutCodec:
    """The codec called `name`, over `space` or its own default space; ValueError for an unknown name."""
    if name not in CODECS:
        raise ValueError(f"codec: seen {name!r}, expected one of {', '.join(sorted(CODECS))}")
    return CODECS[name](space) if space else CODECS[name]()
