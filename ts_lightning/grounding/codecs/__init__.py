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
from ts_lightning.grounding.resizing import resize_rule

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

__all__ = ["CODECS", "Codec", "Mention", "backbone_codec", "get_codec", "told_codec"]


def get_codec(name: str, space: CoordinateSpace | None = None) -> Codec:
    """The codec called `name`, over `space` or its own default space; ValueError for an unknown name."""
    if name not in CODECS:
        raise ValueError(f"codec: seen {name!r}, expected one of {', '.join(sorted(CODECS))}")
    return CODECS[name](space or CODECS[name].default_space)


def told_codec(
    name: str,
    grid: str | None = None,
    frame: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Codec:
    """The codec called `name` for a file of conversations; `grid` and `frame` take the place of its own.

    `min_pixels` and `max_pixels` bound the area of the resized picture that boxes are pixels of; without them they are
    pixels of the picture as it is. ValueError for bounds where nothing is a pixel of a resized picture.
    """
    space = get_codec(name).space
    space = replace(space, grid=grid or space.grid, frame=frame or space.frame)
    if min_pixels is None and max_pixels is None:
        return get_codec(name, space)
    if space.frame != "resized":
        raise ValueError(f"--min_pixels, --max_pixels: seen with codec {name}, expected qwen2_5_vl")
    return get_codec(name, replace(space, resized=resize_rule(min_pixels, max_pixels)))


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
