"""The tiny default: a LLaVA of a small CLIP tower and a small Phi decoder with an MoE in every second layer."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from ts_lightning.models import phi_attention
from ts_lightning.models.backbones.hub_layout import SHIPPED, HubBackbone
from ts_lightning.models.backbones.moe_layout import from_public, install_moe, moe_config, to_public
from ts_lightning.models.encode import ChatTemplate
from ts_lightning.models.package import readable

ACTIVATION = "gelu_pytorch_tanh"  # "gelu_new" in one call


class TinyBackbone(HubBackbone):
    """Loads the shipped tiny base, or one saved by `save`; `pretrained: null` gives random weights from `seed`.

    The sizes count for random weights only; a saved base brings its own config. `codec` names the notation of regions,
    `codec_grid` another grid than the notation's own.
    """

    template = ChatTemplate()
    unused = ("*.post_layernorm.*",)  # the decoder reads the tower's last layer before it

    def __init__(
        self,
        pretrained: str | None = "shipped",
        seed: int = 0,
        hidden_size: int = 128,
        intermediate_size: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        num_experts: int = 4,
        vision_layers: int = 4,
        image_size: int = 96,
        patch_size: int = 16,
        codec: str = "scout",
        codec_grid: str | None = None,
    ) -> None:
        super().__init__()
        folder = SHIPPED if pretrained in ("shipped", None) else Path(pretrained)
        if pretrained is not None and not (folder / "model.safetensors").is_file():
            raise ValueError(
                f"TinyBackbone.pretrained: no model.safetensors in {folder}, expected a folder made by save"
            )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if pretrained is None:
            config = _config(
                tokenizer, hidden_size, intermediate_size, num_layers, num_heads, vision_layers, image_size, patch_size
            )
            config.moe = moe_config(list(range(0, num_layers, 2)), num_experts, top_k=2)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model = LlavaForConditionalGeneration(config)
                install_moe(self.layers, config.moe)
                break_ties(self.layers)
        else:
            stored = json.loads((folder / "config.json").read_text())
            if "moe" not in stored:
                seen, other = stored.get("model_type"), "another model is an HFBackbone: --model.vlm.backbone FOLDER"
                expected = f"expected a folder made by save ({other})"
                raise ValueError(f"TinyBackbone.pretrained: seen model_type {seen!r} in {folder}, {expected}")
            stored["text_config"]["hidden_act"] = ACTIVATION
            config = LlavaConfig.from_dict(stored)
            self.model = LlavaForConditionalGeneration(config)
            install_moe(self.layers, config.moe)
            state = {k: v.float() for k, v in from_public(load_file(folder / "model.safetensors")).items()}
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
            self.model.load_state_dict(state)
        self.model.tie_weights()
        self.model.eval()
        phi_attention.install(self.layers)
        self.name = "tiny" if pretrained == "shipped" else f"tiny:{pretrained or f'random-{seed}'}"
        vision: Any = config.vision_config
        text: Any = config.text_config
        side, tokens = vision.image_size, (vision.image_size // vision.patch_size) ** 2
        self.encoder = self.square_encoder(
            tokenizer, side, tokens, codec, codec_grid, text.max_position_embeddings, "stretch"
        )

    def image_features(self, pixels_N3SS: Tensor) -> Tensor:
        hidden = self.model.model.vision_tower(pixels_N3SS).last_hidden_state
        return self.model.model.multi_modal_projector(hidden[:, 1:])

    def save(self, folder: Path, dtype: torch.dtype | None = torch.bfloat16) -> None:
        """Write config, tokenizer and weights (None: as they are) in MoE-LLaVA's key layout."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.to(dtype or v.dtype).contiguous() for k, v in to_public(self.model.state_dict()).items()}
        state.pop("lm_head.weight")  # tied
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.model.config.to_dict(), indent=1, sort_keys=True) + "\n")
        self.encoder.tokenizer.save_pretrained(folder)
        readable(folder)


def break_ties(layers: Any) -> None:
    """Random experts start as copies of one MLP; a little noise lets them part."""
    for layer in layers:
        if hasattr(layer.mlp, "experts"):
            for expert in layer.mlp.experts:
                for parameter in expert.parameters():
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.02)


def _config(
    tokenizer: PreTrainedTokenizerFast,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    vision_layers: int,
    image_size: int,
    patch_size: int,
) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=hidden,
    )
    text = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=ACTIVATION,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.vocab["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
