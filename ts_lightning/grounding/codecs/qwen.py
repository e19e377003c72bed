"""The notations of Qwen2-VL (0-1000 of the image) and Qwen2.5-VL (JSON, pixels of the resized image)."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs.base import NUMBER, Codec, Mention
from ts_lightning.grounding.codecs.qwen_json import BOX_KEYS, JsonObject, json_objects
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region

POINT = rf"\(\s{{0,3}}({NUMBER})\s{{0,3}},\s{{0,3}}({NUMBER})\s{{0,3}}\)"
BOX = rf"{POINT}\s{{0,3}},\s{{0,3}}{POINT}"
# A decoder that drops special tokens leaves the bare numbers; they count too, but not as canonical.
_MORE = rf"(?:\s{{0,3}},\s{{0,3}}\(\s{{0,3}}{NUMBER}\s{{0,3}},\s{{0,3}}{NUMBER}\s{{0,3}}\))*"
_QWEN2 = re.compile(rf"(?:<\|box_start\|>\s{{0,4}})?{BOX}({_MORE})(?:\s{{0,4}}<\|box_end\|>)?", re.ASCII)
_POINT = re.compile(POINT, re.ASCII)


def unchanged(size: Size) -> Size:
    """The size that an image has where nothing resizes it; a backbone puts its own rule in this place."""
    return size


@dataclass(frozen=True)
class Qwen2VLCodec(Codec):
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, one after the other for several boxes."""

    name: ClassVar[str] = "qwen2_vl"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")
    special_tokens: ClassVar[tuple[str, ...]] = ("<|box_start|>", "<|box_end|>")

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return "".join(f"<|box_start|>{self.corners(region, image_size)}<|box_end|>" for region in regions)

    def corners(self, region: Region, image_size: Size | None) -> str:
        x1, y1, x2, y2 = (self.space.text(n) for n in self.space.encode(region.points, image_size))
        return f"({x1},{y1}),({x2},{y2})"

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = []
        for match in _QWEN2.finditer(text):
            corners = [float(n) for n in match.groups()[:4]]
            corners += [float(n) for point in _POINT.finditer(match[5]) for n in point.groups()]
            if len(corners) % 4:  # an odd number of points is no box of the first two
                found.append(Mention([], match.start(), match.end(), why=f"{len(corners) // 2} points"))
                continue
            regions = [self.region(corners[i : i + 4], image_size) for i in range(0, len(corners), 4)]
            found.append(Mention([region for region in regions if region], match.start(), match.end()))
        return found

    def marks(self) -> list[str]:
        return [*self.special_tokens, "(", ")", ","]


@dataclass(frozen=True)
class Qwen25VLCodec(Codec):
    """`{"bbox_2d": [x1, y1, x2, y2]}`, points as `{"point_2d": [x, y]}`, several in a list; a label may follow.

    Read leniently, as `json_objects` reads: other key orders and further keys, single quotes, a cut end.
    """

    name: ClassVar[str] = "qwen2_5_vl"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("pixels", "resized", unchanged)
    kinds: ClassVar[tuple[str, ...]] = ("click", "box")
    box_key: ClassVar[str] = "bbox_2d"
    point_key: ClassVar[str] = "point_2d"

    def write(self, regions: Sequence[Region], image_size: Size | None) -> str:
        return ", ".join(self._object(region, image_size) for region in regions)

    def canonical(self, mention: Mention, image_size: Size | None = None) -> str:
        return self._object(mention.regions[0], image_size, mention.phrase)

    def named(self, regions: Sequence[Box | Region], image_size: Size | None, phrase: str | None = None) -> str:
        known = [region if isinstance(region, Region) else Region.from_box(region) for region in regions]
        return ", ".join(self._object(region, image_size, phrase) for region in known)

    def _object(self, region: Region, image_size: Size | None, phrase: str | None = None) -> str:
        key = self.point_key if region.kind == "click" else self.box_key
        label = f', "label": {json.dumps(phrase, ensure_ascii=False)}' if phrase else ""
        return f'{{"{key}": [{self.numbers(region, image_size, ", ")}]{label}}}'

    def find(self, text: str, image_size: Size | None) -> list[Mention]:
        found = json_objects(text)
        regions = [self.known(one.numbers, one.key in BOX_KEYS, image_size) for one in found]
        return self.mentions(found, regions)

    @staticmethod
    def mentions(objects: Sequence[JsonObject], regions: Sequence[list[Region]]) -> list[Mention]:
        """The objects of a text with the regions of each."""
        return [
            Mention(places, one.start, one.end, phrase=one.label, further=one.further)
            for one, places in zip(objects, regions, strict=True)
        ]

    def known(self, lists: Sequence[Sequence[float]], boxes: bool, image_size: Size | None) -> list[Region]:
        """The regions of lists of numbers that are of the kind which their key names."""
        kind = "box" if boxes else "click"
        found = [self.region(numbers, image_size) for numbers in lists]
        return [region for region in found if region is not None and region.kind == kind]

    def marks(self) -> list[str]:
        return ["[", "]", ","]
