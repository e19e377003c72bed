"""CogVLM's notation: three digits, `[[010,090,790,999]]`, several boxes as `[[a;b]]`."""

from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.scout import ScoutCodec
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.regions import Region


@dataclass(frozen=True)
class CogVLMCodec(ScoutCodec):
    """Integers 000-999 of the original image, from one edge to the other."""

    name: ClassVar[str] = "cogvlm"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("999", "original")

    def numbers(self, region: Region, image_size: Size | None, joint: str = ",") -> str:
        return joint.join(f"{int(n):03d}" for n in self.space.encode(region.points, image_size))

    def coordinate_tokens(self) -> list[str]:
        return sorted({*(f"{n:03d}" for n in range(1000)), *self.marks()})
