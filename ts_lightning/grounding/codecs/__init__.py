"""Notations of regions: how clicks, boxes and polygons are written in prompts and answers, and read back."""

from ts_lightning.grounding.codecs.base import Codec, Mention
from ts_lightning.grounding.codecs.chatspot import ChatSpotCodec
from ts_lightning.grounding.codecs.cogvlm import CogVLMCodec
from ts_lightning.grounding.codecs.mirg import MirgCodec
from ts_lightning.grounding.codecs.qwen import Qwen2VLCodec, Qwen25VLCodec
from ts_lightning.grounding.codecs.scout import ScoutCodec
from ts_lightning.grounding.codecs.shikra import ShikraCodec
from ts_lightning.grounding.coordinates import CoordinateSpace

CODECS: dict[str, type[Codec]] = {
    codec.name: codec
    for codec in (ScoutCodec, CogVLMCodec, ChatSpotCodec, ShikraCodec, Qwen2VLCodec, Qwen25VLCodec, MirgCodec)
}

__all__ = ["CODECS", "Codec", "Mention", "get_codec"]


def get_codec(name: str, space: CoordinateSpace | None = None) -> Codec:
    """The codec called `name`, over `space` or its own default space; ValueError for an unknown name."""
    if name not in CODECS:
        raise ValueError(f"codec: seen {name!r}, expected one of {', '.join(sorted(CODECS))}")
    return CODECS[name](space or CODECS[name].default_space)
