"""InternVL in transformers' form (InternVL3): one tile of 448 x 448 a picture, 256 tokens of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ts_lightning.grounding.codecs import backbone_codec
from ts_lightning.models.backbones.hub_layout import (
    HubBackbone,
    check_source,
    check_tokens,
    load_tokenizer,
    load_weights_of,
    small_tokenizer,
    with_seed,
)
from ts_lightning.models.encode import ChatTemplate, Encoder

# the chat template of the folders in transformers' form: no system turn, a new line behind every mark of a picture
INTERNVL = ChatTemplate(
    user="<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>\n",
    blank="",
    after_picture="\n",
)
MARKS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


class TileEncoder(Encoder):
    """`Encoder` with InternVL's marks around the tokens of a picture."""

    def picture_text(self, index: int, sample: Any) -> str:
        return f"<img>{super().picture_text(index, sample)}</img>"


class InternVLBackbone(HubBackbone):
    """Loads a folder that transformers saved; with `config` it has random weights from `seed` and no folder is needed.

    Args:
        pretrained: Folder with config, safetensors and tokenizer.
        config: An `InternVLConfig` as a dict, in place of `pretrained`.
        seed: Of the random weights.
        dtype: Of the weights.
        codec: Notation of regions; InternVL's own boxes are [[x1, y1, x2, y2]] on 0-1000, which is scout on that grid.
        codec_grid: The grid of the numbers; the frame stays the notation's.
        max_length: Longest row in tokens.
        pixel_mode: "stretch", as the original does with a single tile, or "pad".
    """

    pixel_mean = (0.485, 0.456, 0.406)
    pixel_std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: str = "float32",
        codec: str = "scout",
        codec_grid: str = "1000",
        max_length: int = 4096,
        pixel_mode: str = "stretch",
    ) -> None:
        super().__init__()
        settings = check_source(type(self).__name__, pretrained, config, {"internvl": None}, InternVLConfig)
        if config is not None:
            tokenizer = small_tokenizer(MARKS, end="<|im_end|>")
            settings.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
            with with_seed(seed):
                self.model = InternVLForConditionalGeneration._from_config(settings, dtype=getattr(torch, dtype))
        else:
            tokenizer = load_tokenizer(str(pretrained), "<IMG_CONTEXT>", "<|im_end|>")
            self.model = load_weights_of(InternVLForConditionalGeneration, Path(str(pretrained)), settings, dtype)
        check_tokens(self, tokenizer, "<IMG_CONTEXT>")
        self.model.eval()
        self.name = f"internvl:{pretrained or f'random-{seed}'}"
        vision: Any = settings.vision_config
        side, patch = vision.image_size[0], vision.patch_size[0]
        self.encoder = TileEncoder(
            tokenizer=tokenizer,
            image_token="<IMG_CONTEXT>",
            image_tokens=int((side // patch) ** 2 * settings.downsample_ratio**2),
            image_size=side,
            max_length=max_length,
            pixel_mode=pixel_mode,
            codec=backbone_codec(codec, codec_grid, (side, side), pixel_mode),
            template=INTERNVL,
        )

    def image_features(self, pixels_N3SS: Tensor) -> Tensor:
        config = self.model.config
        return self.model.model.get_image_features(
            pixel_values=pixels_N3SS,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
