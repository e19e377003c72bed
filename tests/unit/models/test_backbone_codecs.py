"""The frame and the size that every backbone gives to its notation."""

from typing import Any

from transformers import Qwen2_5_VLConfig

from tests.unit.models.test_backbones import internvl_config, llava_config, moe_public, qwen_config
from ts_lightning.models.backbones.base import notation
from ts_lightning.models.backbones.internvl import InternVLBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone


def test_another_grid_or_codec_keeps_the_frame_of_the_notation() -> None:
    """The box (0.25, 0.25, 0.75, 0.5) of 80 x 60 pixels; on the padded square of 80 its y are (10 + 60 y) / 80."""

    def written(kind: Any, config: Any, **options: Any) -> str:
        return kind(config=config, **options).encoder.codec.format([(0.25, 0.25, 0.75, 0.5)], (80, 60))

    pixels = '{"bbox_2d": [%s]}'
    for kind, config in ((LlavaBackbone, llava_config()), (MoELlavaBackbone, moe_public())):
        padded = "[0.2500,0.3125,0.7500,0.5000]"
        assert written(kind, config, codec="shikra", codec_grid="decimals:4") == padded
        assert written(kind, config, codec="qwen2_5_vl") == pixels % "14, 18, 42, 28"  # the square has 56 pixels
    stretched = written(LlavaBackbone, llava_config(), codec="qwen2_5_vl", pixel_mode="stretch")
    assert stretched == pixels % "14, 14, 42, 28"
    internvl = written(InternVLBackbone, internvl_config(), codec="qwen2_5_vl", codec_grid="pixels")
    assert internvl == pixels % "14, 14, 42, 28"
    qwen = qwen_config(Qwen2_5_VLConfig)
    own = pixels % "21, 14, 63, 28"  # 80 x 60 becomes 84 x 56
    assert written(QwenVLBackbone, qwen) == written(QwenVLBackbone, qwen, codec_grid="pixels") == own
    assert TinyBackbone(codec="qwen2_5_vl").encoder.codec.space.resized == (96, 96)


def test_the_notation_of_stored_arguments_is_that_of_a_backbone_made_with_them() -> None:
    """Here another codec and grid are given; what a checkpoint leaves out is the class's or the family's own."""
    stored: list[dict[str, Any]] = [{}, {"codec": "qwen2_5_vl"}, {"codec": "shikra", "codec_grid": "decimals:4"}]
    kinds: list[tuple[Any, Any]] = [
        (LlavaBackbone, llava_config()),
        (InternVLBackbone, internvl_config()),
        (QwenVLBackbone, qwen_config(Qwen2_5_VLConfig)),
    ]
    for kind, config in kinds:
        here = kind(config=config, codec="scout", codec_grid="999")
        further = [{"codec": "qwen2_5_vl", "pixel_mode": "stretch"}] if kind is LlavaBackbone else []
        for given in [*stored, *further]:
            expected = notation(kind(config=config, **given).encoder.codec)
            assert notation(here.codec_of({"class_path": "x", "init_args": given})) == expected
        assert notation(here.codec_of("folder")) == notation(kind(config=config).encoder.codec)
