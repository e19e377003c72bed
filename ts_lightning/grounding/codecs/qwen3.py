"""Qwen3-VL's notation: Qwen2.5-VL's JSON, with numbers 0-1000 of the image."""

from dataclasses import dataclass
from typing import ClassVar

from ts_lightning.grounding.codecs.qwen import Qwen25VLCodec
from ts_lightning.grounding.coordinates import CoordinateSpace


@dataclass(frozen=True)
class Qwen3VLCodec(Qwen25VLCodec):
    """`{"bbox_2d": [x1, y1, x2, y2], "label": ...}`, points as `{"point_2d": [x, y]}`, integers 0-1000."""

    name: ClassVar[str] = "qwen3_vl"
    default_space: ClassVar[CoordinateSpace] = CoordinateSpace("1000", "original")
