"""MoE-LLaVA-Phi2: a LLaVA over Phi whose MLP in some layers is a mixture of experts, in its public file layout.

The original needs DeepSpeed to run; here its experts are our dropless `MoE` (argmax top-2, renormalised), which equals
the original at evaluation with its sampling noise off: with a capacity factor of 2.0 no token is dropped there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaConfig, PhiConfig

from ts_lightning.models.backbones.hub_layout import (
    check_tokens,
    load_tokenizer,
    random_model,
    read_config,
    small_tokenizer,
    with_seed,
)
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_layout import from_public, install_moe, moe_config, to_public
from ts_lightning.models.encode import ChatTemplate
from ts_lightning.models.package import readable

PHI = ChatTemplate(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    end="<|endoftext|>",
)
_TOWER = "model.image_tower.image_tower."
# ours -> public, first match
_NAMES = (
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^model\.multi_modal_projector\.linear_1\."), "model.mm_projector.image_spatial_proj.0."),
    (re.compile(r"^model\.multi_modal_projector\.linear_2\."), "model.mm_projector.image_spatial_proj.2."),
    (re.compile(r"^model\.vision_tower\."), f"{_TOWER}vision_model."),
)
_BACK = (
    (re.compile(r"^model\.mm_projector\.image_spatial_proj\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.image_spatial_proj\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.image_tower\.image_tower\.vision_model\."), "model.vision_tower."),
    (re.compile(r"^model\.(?=embed_tokens|layers|final_layernorm)"), "model.language_model."),
)


class MoELlavaBackbone(LlavaBackbone):
    """Reads MoE-LLaVA-Phi2's public folder, or has random weights from `config`; writes the same layout.

    Args:
        pretrained: Folder with config.json (model_type moe_llava_phi), weights and tokenizer.
        image_tower: Folder of the CLIP tower, where the weights don't hold it.
        config: The public config.json as a dict, in place of `pretrained`.
        seed: Of the random weights.
        num_experts: Upcycles a dense folder: so many copies of the MLP in every second layer, with a fresh router.
        dtype: Of the weights.
        codec: Notation of regions.
        codec_grid: Another grid than the notation's own.
        dropout: The rates of the public file (resid_pdrop ...), for tuning of the whole model; else none.
    """

    model_types = ("moe_llava_phi", "llava_phi")
    template = PHI
    made_by = ("config", "seed", "image_tower", "num_experts")

    def __init__(
        self,
        pretrained: str | None = None,
        image_tower: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        num_experts: int | None = None,
        dtype: str = "float32",
        codec: str = "scout",
        codec_grid: str | None = None,
        dropout: bool = False,
    ) -> None:
        super(LlavaBackbone, self).__init__()
        if (pretrained is None) == (config is None):
            raise ValueError("MoELlavaBackbone: seen pretrained and config both or neither, expected one of them")
        folder = Path(str(pretrained))
        self.public = dict(config) if config is not None else read_config(folder)
        if self.public.get("model_type") not in self.model_types:
            kind = self.public.get("model_type")
            raise ValueError(f"{pretrained}: seen model_type {kind!r}, expected 'moe_llava_phi' or dense 'llava_phi'")
        if config is not None:
            tokenizer = small_tokenizer(("<|endoftext|>",), end="<|endoftext|>")
        else:
            # the original splices features at id -200 and pads with its end mark; ours are tokens of their own
            tokenizer = load_tokenizer(folder, "<image>", PHI.end)
        check_public(self.public, pretrained or "config")
        settings = llava_config(self.public, _tower_config(self.public, image_tower), tokenizer, dropout)
        with with_seed(seed):
            self.model = random_model(settings, dtype)
            moe = self.public.get("moe")
            if num_experts is not None:
                self.model = self._filled(folder, image_tower, config)
                moe = moe_config(list(range(0, len(self.layers), 2)), num_experts, top_k=2)
                install_moe(self.layers, moe)
                self.public |= {"model_type": "moe_llava_phi", "moe": moe}
            else:
                if moe:
                    install_moe(self.layers, moe)
                self.model = self._filled(folder, image_tower, config)
        check_tokens(self, tokenizer, "<image>")
        self.model.to(getattr(torch, dtype)).eval()
        self.name = f"moe_llava:{pretrained or f'random-{seed}'}"
        self.set_up(tokenizer, codec, codec_grid, self.public.get("tokenizer_model_max_length", 2048), "pad")

    def _filled(self, folder: Path, image_tower: str | None, config: Any) -> Any:
        if config is None:
            fill(self.model, read_public(folder), image_tower)
        return self.model

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the public layout: config.json, model.safetensors with the original's key names, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        state = public_names(to_public(self.model.state_dict()))
        state = {k: v.to(dtype or v.dtype).contiguous() for k, v in state.items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        public = self.public | {"vocab_size": len(self.embedding.weight)}
        (folder / "config.json").write_text(json.dumps(public, indent=1, sort_keys=True) + "\n")
        self.encoder.tokenizer.save_pretrained(folder)
        readable(folder)


def public_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of LlavaForConditionalGeneration as MoE-LLaVA names them."""
    return {_renamed(name, _NAMES): tensor for name, tensor in state.items()}


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of MoE-LLaVA as LlavaForConditionalGeneration names them; buffers and the video tower are left out."""
    buffers = ("rotary_emb.inv_freq", "position_ids")
    kept = {k: v for k, v in state.items() if "video_" not in k and not k.endswith(buffers)}
    return {_renamed(name, _BACK): tensor for name, tensor in kept.items()}


def _renamed(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    return next((pattern.sub(to, name) for pattern, to in rules if pattern.search(name)), name)


def read_public(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder under our names."""
    return from_public(own_names(read_weights(folder, "pretrained")))


def read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """All safetensors of a folder, or pickled .bin shards read with weights_only; ValueError names the argument."""
    files = sorted(folder.glob("*.safetensors"))
    pickled = [] if files else sorted(folder.glob("pytorch_model*.bin"))
    if not files and not pickled:
        raise ValueError(f"{name}: seen no *.safetensors and no pytorch_model*.bin in {folder}, expected weights")
    state: dict[str, Tensor] = {}
    for path in files:
        state |= load_file(path)
    for path in pickled:
        state |= torch.load(path, map_location="cpu", weights_only=True)
    return state


def fill(model: Any, state: dict[str, Tensor], image_tower: str | None) -> None:
    """Copy weights into the model; ValueError for missing, unknown and differently shaped ones.

    Embedding rows beyond the file's (the image placeholder) stay as they are, and so does a head bias, which the
    original does not have.
    """
    own = model.state_dict()
    if image_tower is not None:
        tower = read_weights(Path(image_tower), "image_tower")
        named = {f"model.vision_tower.{k.removeprefix('vision_model.')}": v for k, v in tower.items()}
        state |= {k: v for k, v in named.items() if k in own}
    state.pop("lm_head.bias", None)
    if missing := sorted(own.keys() - state.keys()):
        hint = " (give image_tower, the folder of the CLIP tower)" if "vision_tower" in missing[0] else ""
        raise ValueError(f"pretrained: seen no {missing[0]} ({len(missing)} missing), expected the whole model{hint}")
    if unknown := sorted(state.keys() - own.keys()):
        raise ValueError(f"pretrained: seen unknown {unknown[0]} ({len(unknown)} of them), expected MoE-LLaVA's names")
    with torch.no_grad():
        for name, tensor in state.items():
            rows = len(tensor) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else None
            place = own[name][:rows] if rows is not None else own[name]
            if place.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, expected {tuple(place.shape)}"
                raise ValueError(f"pretrained: {name}: seen shape {shapes}")
            place.copy_(tensor)


def check_public(public: Mapping[str, Any], where: str) -> None:
    """ValueError for a public config that says what our modules don't do."""
    expected: dict[str, tuple[Any, ...]] = {
        "image_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch",),
    }
    seen = {name: public.get(name) for name in expected}
    if moe := public.get("moe"):
        expected |= {"moe.use_residual": (False,), "moe.top_k_experts": (1, 2)}
        seen |= {"moe.use_residual": moe.get("use_residual"), "moe.top_k_experts": moe["top_k_experts"]}
    for name, values in expected.items():
        if seen[name] is not None and seen[name] not in values:
            raise ValueError(f"{where}: {name}: seen {seen[name]!r}, expected {' or '.join(map(repr, values))}")


DROPOUT = ("resid_pdrop", "embd_pdrop", "attention_dropout")


def llava_config(public: Mapping[str, Any], vision: Any, tokenizer: Any, dropout: bool = False) -> Any:
    """The transformers config of a public MoE-LLaVA config; the vocabulary has room for tokens that were added.

    dropout: with the file's own rates, for tuning of the whole model; a frozen base has none.
    """
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    added = max(tokenizer.get_added_vocab().values())
    rates: dict[str, Any] = {name: public.get(name, 0.0) if dropout else 0.0 for name in DROPOUT}
    text = PhiConfig(
        vocab_size=max(public["vocab_size"], added + 1),
        **{name: public[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        num_attention_heads=public["num_attention_heads"],
        num_key_value_heads=public.get("num_key_value_heads"),
        hidden_act=public.get("hidden_act", "gelu_new"),
        layer_norm_eps=public.get("layer_norm_eps", 1e-5),
        max_position_embeddings=public.get("max_position_embeddings", 2048),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(public.get("rope_theta", 10000.0)),
            "partial_rotary_factor": public.get("partial_rotary_factor", 0.5),
        },
        tie_word_embeddings=public.get("tie_word_embeddings", False),
        **rates,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        vision_feature_layer=public.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
    )


def _tower_config(public: Mapping[str, Any], image_tower: str | None) -> Any:
    """The CLIP tower's config: of its folder, of `vision_config` in the public file, else CLIP ViT-L/14-336."""
    if image_tower is not None:
        values = read_config(Path(image_tower))
        if values.get("model_type", "clip") not in ("clip", "clip_vision_model"):
            raise ValueError(f"image_tower: seen {values['model_type']!r} in {image_tower}, expected a CLIP tower")
        return CLIPVisionConfig.from_dict(values.get("vision_config", values))
    if "vision_config" in public:
        return CLIPVisionConfig.from_dict(dict(public["vision_config"]))
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    return CLIPVisionConfig(**sizes, image_size=336, patch_size=14, projection_dim=768)
