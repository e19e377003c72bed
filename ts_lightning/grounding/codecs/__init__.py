"""Notations of regions: how clicks, boxes and polygons are written in prompts and answers, and read back."""

from collections.abc import Callable
from dataclasses import replace

from ts_lightning.grounding.codecs.base import Codec, Mention
from ts_lightning.grounding.codecs.bracketed import GLMCodec, InternVLCodec
from ts_lightning.grounding.codecs.chatspot import ChatSpotCodec
from ts_lightning.grounding.codecs.cogvlm import CogVLMCodec
from ts_lightning.grounding.codecs.gemma import GemmaCodec
from ts_lightning.grounding.codecs.mirg import MirgCodec
from ts_lightning.grounding.codecs.molmo import MolmoCodec
from ts_lightning.grounding.codecs.paligemma import PaliGemmaCodec
from ts_lightning.grounding.codecs.qwen import Qwen2VLCodec, Qwen25VLCodec
from ts_lightning.grounding.codecs.qwen3 import Qwen3VLCodec
from ts_lightning.grounding.codecs.scout import ScoutCodec
from ts_lightning.grounding.codecs.shikra import ShikraCodec
from ts_lightning.grounding.coordinates import CoordinateSpace, Size

CODECS: dict[str, type[Codec]] = {
    codec.name: codec
    for codec in (
        ScoutCodec,
        CogVLMCodec,
        ChatSpotCodec,
        ShikraCodec,
        Qwen2VLCodec,
        Qwen25VLCodec,
        Qwen3VLCodec,
        MirgCodec,
        PaliGemmaCodec,
        GemmaCodec,
        InternVLCodec,
        GLMCodec,
        MolmoCodec,
    )
}

__all__ = ["CODECS", "Codec", "Mention", "backbone_codec", "get_codec"]


def get_codec(name: str, space: CoordinateSpace | None = None) -> Codec:
    """The codec called `name`, over `space` or its own default space; ValueError for an unknown name."""
    if name not in CODECS:
        raise ValueError(f"codec: seen {name!r}, expected one of {', '.join(sorted(CODECS))}")
    return CODECS[name](space or CODECS[name].default_space)


def backbone_codec(
    name: str, grid: str | None, resized: Size | Callable[[Size], Size], pixel_mode: str = "stretch"
) -> Codec:
    """The codec called `name` for a backbone whose image processor makes pictures of size `resized`.

    `grid` takes the place of the codec's own; the frame stays the codec's. A processor that pads first (`pixel_mode`
    "pad") resizes the padded square.
    """
    space = get_codec(name).space
    space = replace(space, grid=grid or space.grid)
    if space.frame == "resized":
        space = replace(space, frame="padded_square" if pixel_mode == "pad" else "resized", resized=resized)
    return get_codec(name, space)
