"""InternVL in transformers' form (InternVL3): one tile of 448 x 448 a picture, 256 tokens of it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ts_lightning.models.backbones.hub_layout import HubBackbone
from ts_lightning.models.encode import ChatTemplate, Encoder

# the chat template of the folders in transformers' form: no system turn, a new line behind every mark of a picture
INTERNVL = ChatTemplate(
    user="<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    between="\n",
    blank="",
    after_picture="\n",
)


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

    model_types = ("internvl",)
    image_token = "<IMG_CONTEXT>"
    template = INTERNVL
    marks = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
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
        settings = self.source(pretrained, config)
        tokenizer = self.load(settings, pretrained, seed, dtype)
        side, patch = settings.vision_config.image_size[0], settings.vision_config.patch_size[0]
        tokens = int((side // patch) ** 2 * settings.downsample_ratio**2)
        self.encoder = self.square_encoder(
            tokenizer, side, tokens, codec, codec_grid, max_length, pixel_mode, kind=TileEncoder
        )

    def image_features(self, pixels_N3SS: Tensor) -> Tensor:
        config = self.model.config
        return self.model.model.get_image_features(
            pixel_values=pixels_N3SS,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
