"""The papers' models at full size, on the meta device: parameters, what is active, memory for each strategy."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ts_lightning.models import MoE, TwinExpertVLM
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_layout import moe_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone

CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
          "image_size": 336, "patch_size": 14, "projection_dim": 768}  # fmt: skip
MOE_LLAVA_PHI2: dict[str, Any] = {
    "model_type": "moe_llava_phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "partial_rotary_factor": 0.4, "vision_config": CLIP_L,
    "moe": moe_config(list(range(0, 32, 2)), 4, top_k=2),
}  # fmt: skip
LLAVA_7B: dict[str, Any] = {
    "model_type": "llava", "vision_config": CLIP_L | {"model_type": "clip_vision_model"},
    "text_config": {"model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
                    "num_hidden_layers": 32, "num_attention_heads": 32},
}  # fmt: skip
QWEN2_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "text_config": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                    "num_attention_heads": 28, "num_key_value_heads": 4,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
}  # fmt: skip
PAPER = {("MoE-LLaVA-Phi2", 1): "0.8", ("MoE-LLaVA-Phi2", 2): "1.6", ("MoE-LLaVA-Phi2", 4): "3.3"}  # Table 7
GiB = 2**30


class Row(NamedTuple):
    """Parameters of one model with twin experts. `active`: of grounding experts, for one token."""

    model: str
    base: int
    twin_layers: int
    num_experts: int
    trainable: int
    active: dict[int, int]


def backbone(model: str) -> Backbone:
    """A paper's model, with random weights on the current device ("meta": with none)."""
    if model == "MoE-LLaVA-Phi2":
        return MoELlavaBackbone(config=MOE_LLAVA_PHI2, dtype="bfloat16")
    if model == "LLaVA-1.5-7B":
        return LlavaBackbone(config=LLAVA_7B, dtype="bfloat16")
    if model == "Qwen2-VL-7B":
        return QwenVLBackbone(config=QWEN2_VL_7B, dtype="bfloat16")
    raise ValueError(f"model: seen {model!r}, expected one of {', '.join(MODELS)}")


MODELS = ("MoE-LLaVA-Phi2", "LLaVA-1.5-7B", "Qwen2-VL-7B")


def rows() -> Iterator[Row]:
    """Every model with 1, 2 and 4 grounding experts in every second layer."""
    for model in MODELS:
        for num_experts in (1, 2, 4):
            with torch.device("meta"):
                base = backbone(model)
                total = _count(base.model.parameters())
                vlm = TwinExpertVLM(base, num_experts=num_experts, top_k=min(2, num_experts))
            trainable = _count(p for p in vlm.parameters() if p.requires_grad)
            yield Row(model, total, len(vlm.twins), num_experts, trainable, _active(vlm, num_experts))


def _active(vlm: TwinExpertVLM, num_experts: int) -> dict[int, int]:
    """Parameters of grounding experts that one token passes, by top-k, routers and alpha included."""
    active = {}
    for top_k in {1, min(2, num_experts)}:
        total = 1  # alpha
        for twin in vlm.twins:
            experts = twin.packages["grounding"].get_submodule("experts")
            if isinstance(experts, MoE):
                total += top_k * _count(experts.experts[0].parameters()) + experts.router.weight.numel()
            else:
                total += _count(experts.parameters())
        active[top_k] = total
    return active


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def memory(row: Row, gpus: int) -> dict[str, float]:
    """GiB of weights, gradients and AdamW states on each GPU: base in bf16, what trains in fp32. No activations."""
    frozen, trained = 2 * row.base, 4 * row.trainable
    gradients, states = 4 * row.trainable, 8 * row.trainable
    return {
        "DDP": (frozen + trained + gradients + states) / GiB,
        "ZeRO-2": (frozen + trained + (gradients + states) / gpus) / GiB,
        "FSDP2": (frozen + trained + gradients + states) / gpus / GiB,
        "full fine-tuning, ZeRO-2": (2 * row.base + (4 + 4 + 8) * row.base / gpus) / GiB,
    }
