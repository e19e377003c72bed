"""LLaVA-1.5: a CLIP tower, a projector, a LLaMA decoder; and ChatSpot's form of it with a linear projector."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from ts_lightning.models.backbones.hub_layout import HubBackbone, squares, with_pixels
from ts_lightning.models.encode import ChatTemplate

VICUNA = ChatTemplate(
    system="<s>A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


# In place of an activation's name: plain transformers fails on it, rather than opening with a random projector.
FOREIGN = "a linear projector of ts_lightning, opened by ts_lightning.load(FOLDER)"


class LinearProjector(nn.Module):
    """One linear layer between vision and language (ChatSpot 4.1)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class LinearLlava(LlavaForConditionalGeneration):
    """LLaVA whose projector is a `LinearProjector`; its config.json says `projector: linear`."""

    def __init__(self, config: Any) -> None:
        config.projector_hidden_act = "gelu"  # of LLaVA's own projector, which goes
        super().__init__(config)
        config.projector_hidden_act = FOREIGN
        self.model.multi_modal_projector = LinearProjector(config)
        self.post_init()


# A class of ours is custom code to transformers; its files shall have the same key names as LLaVA's all the same.
register_checkpoint_conversion_mapping("LinearLlava", get_checkpoint_conversion_mapping("llava"), overwrite=True)


class LlavaBackbone(HubBackbone):
    """Loads a folder that transformers saved; with `config` it has random weights from `seed` and no folder is needed.

    Args:
        pretrained: Folder with config, safetensors and tokenizer.
        config: A `LlavaConfig` as a dict, in place of `pretrained`; its tokenizer is the tiny base's.
        seed: Of the random weights.
        projector: "mlp" (LLaVA-1.5) or "linear" (ChatSpot); None takes what the config says. A linear one in place of
            the config's is fresh: it has to be trained.
        dtype: Of the weights: "float32", "bfloat16", ...
        codec: Notation of regions.
        codec_grid: Another grid than the notation's own; the frame stays its own.
        max_length: Longest row in tokens.
        pixel_mode: "pad" keeps the whole picture in shape; "stretch" fills the square with it.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    template = VICUNA

    def __init__(
        self,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        projector: str | None = None,
        dtype: str = "float32",
        codec: str = "scout",
        codec_grid: str | None = None,
        max_length: int = 2048,
        pixel_mode: str = "pad",
    ) -> None:
        super().__init__()
        if projector not in (None, "mlp", "linear"):
            raise ValueError(f"LlavaBackbone.projector: seen {projector!r}, expected 'mlp' or 'linear'")
        settings = self.source(pretrained, config)
        check_tower(settings.vision_config, settings, pretrained or "config")
        stored = getattr(settings, "projector", "mlp")
        settings.projector = projector or stored
        if settings.projector_hidden_act == FOREIGN:
            settings.projector_hidden_act = "gelu"
        kind = LinearLlava if settings.projector == "linear" else AutoModelForImageTextToText
        fresh = () if settings.projector == stored else ("multi_modal_projector",)
        tokenizer = self.load(settings, pretrained, seed, dtype, kind, fresh)
        self.set_up(tokenizer, codec, codec_grid, max_length, pixel_mode)

    def set_up(self, tokenizer: Any, codec: str, codec_grid: str | None, max_length: int, pixel_mode: str) -> None:
        """What follows from the tower's config: the encoder, and what is never read of the tower."""
        vision: Any = self.model.config.vision_config
        depth = vision.num_hidden_layers
        read = self.model.config.vision_feature_layer % (depth + 1)  # hidden_states[0] is the embedding
        self.unused = ("*.post_layernorm.*", *(f"*vision_tower*.layers.{i}.*" for i in range(read, depth)))
        side, tokens = vision.image_size, (vision.image_size // vision.patch_size) ** 2
        self.side_files = with_pixels(self.side_files, squares(side, pixel_mode == "pad"))
        self.encoder = self.square_encoder(tokenizer, side, tokens, codec, codec_grid, max_length, pixel_mode)

    def image_features(self, pixels_N3SS: Tensor) -> Tensor:
        hidden = self.model.model.vision_tower(pixels_N3SS, output_hidden_states=True).hidden_states
        features = hidden[self.model.config.vision_feature_layer]
        return self.model.model.multi_modal_projector(features[:, 1:])  # without the class token


def check_tower(vision: Any, settings: Any, where: str) -> None:
    """ValueError for a vision tower that is not CLIP's, or is read otherwise than as LLaVA-1.5 reads it."""
    if vision.model_type != "clip_vision_model":
        raise ValueError(f"{where}: seen vision tower {vision.model_type!r}, expected 'clip_vision_model'")
    read = (settings.vision_feature_layer, settings.vision_feature_select_strategy)
    if not isinstance(read[0], int) or read[1] != "default":
        raise ValueError(f"{where}: seen vision features {read}, expected one layer and 'default' (no class token)")
