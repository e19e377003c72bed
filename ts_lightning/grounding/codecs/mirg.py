"""MIRG-RL's notation: `<bbox_id>[N-M]</bbox_id>` names object M of picture N, with phrase and box the first time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs.base import Mention
from ts_lightning.grounding.codecs.qwen import BOX, Qwen2VLCodec
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

_OBJECT = re.compile(
    r"<bbox_id>\[(\d{1,3})-(\d{1,4})\]</bbox_id>"
    rf"(?:\s{{0,4}}<\|object_ref_start\|>((?:[^<]|<(?!\|)){{0,1000}})<\|object_ref_end\|>)?"
    rf"(?:\s{{0,4}}<\|box_start\|>\s{{0,4}}{BOX}\s{{0,4}}<\|box_end\|>)?",
    re.ASCII,
)


@dataclass(frozen=True)
class MirgCodec(Qwen2VLCodec):
    """Boxes as Qwen2-VL writes them; later mentions of an object are its id alone and are resolved when read."""

    name: ClassVar[str] = "mirg"
    special_tokens: ClassVar[tuple[str, ...]] = (
        *("<bbox_id>", "</bbox_id>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>"),
    )
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")

    def reference(
        self,
        regions: Sequence[Box | Region],
        image_size: Size | None,
        image: int = 0,
        number: int = 1,
        phrase: str | None = None,
        first: bool = True,
    ) -> str:
        mark = f"<bbox_id>[{image + 1}-{number}]</bbox_id>"
        if not first:
            return mark
        return f"{mark}<|object_ref_start|>{phrase or 'object'}<|object_ref_end|>{self.format(regions, image_size)}"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        known: dict[tuple[str, str], tuple[Region, str | None]] = {}
        found, ends = [], 0
        for match in _OBJECT.finditer(text):
            found += self._bare(text, ends, match.start(), image_size)
            ends = match.end()
            image, number, phrase, *corners = match.groups()
            region = self.region([float(n) for n in corners], image_size) if corners[0] else None
            if region is not None:
                known[image, number] = region, phrase
            resolved = known.get((image, number)) if region is not None or not corners[0] else None
            regions = [resolved[0]] if resolved and int(image) else []
            phrase = resolved[1] if resolved else phrase
            why = None if regions else "no well-formed box" if corners[0] else "an id without a box before it"
            name = f"{image}-{number}"
            found.append(Mention(regions, match.start(), match.end(), int(image) - 1, phrase, name, why))
        return [*found, *self._bare(text, ends, len(text), image_size)]

    def _bare(self, text: str, start: int, end: int, image_size: Size | None) -> list[Mention]:
        """Boxes without an id between two objects."""
        return [
            mention._replace(start=mention.start + start, end=mention.end + start)
            for mention in super().find(text[start:end], image_size)
        ]

    def is_canonical(self, mention: Mention, written: str, image_size: Size | None = None) -> bool:
        """An id alone is canonical once its object has been introduced."""
        match = _OBJECT.fullmatch(written)
        if match is None:
            return written == self.format(mention.regions, image_size)
        image, number = int(match[1]) - 1, int(match[2])
        first = match[4] is not None
        return written == self.reference(mention.regions, image_size, image, number, match[3], first)
