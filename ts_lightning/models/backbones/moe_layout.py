"""MoE-LLaVA's public layout: `config.moe` and the key names of its MoE layers."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ts_lightning.models.moe import MoE

# ours -> public; `mlp` is the slot of a decoder layer
_RENAMES = (
    (re.compile(r"\.mlp\.router\.weight$"), ".mlp.deepspeed_moe.gate.wg.weight"),
    (re.compile(r"\.mlp\.experts\.(\d+)\."), r".mlp.deepspeed_moe.experts.deepspeed_experts.\1."),
)
_BACK = (
    (re.compile(r"\.mlp\.deepspeed_moe\.gate\.wg\.weight$"), ".mlp.router.weight"),
    (re.compile(r"\.mlp\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\."), r".mlp.experts.\1."),
)


def moe_config(layers: list[int], num_experts: int, top_k: int) -> dict[str, Any]:
    """The `moe` entry of config.json as MoE-LLaVA writes it."""
    return {
        "moe_enable": True,
        "moe_mode": "sparse",
        "moe_layers_idx": layers,
        "ep_size": 1,
        "num_experts": [num_experts] * len(layers),
        "top_k_experts": top_k,
        "capacity_factor": 1.5,
        "eval_capacity_factor": 2.0,
        "min_capacity": 0,
        "use_residual": False,
        "router_aux_loss_coef": 0.01,
        "train_modules": ["fc1", "fc2", "wg"],
    }


def install_moe(layers: nn.ModuleList, moe: Mapping[str, Any]) -> None:
    """Replace the MLP of the layers in `moe["moe_layers_idx"]` by an MoE of copies of it, in place."""
    for index, num_experts in zip(moe["moe_layers_idx"], moe["num_experts"], strict=True):
        layers[index].mlp = MoE.copies(layers[index].mlp, num_experts, moe["top_k_experts"])


def to_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State-dict keys as MoE-LLaVA writes them."""
    return {_rename(name, _RENAMES): tensor for name, tensor in state.items()}


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State-dict keys as our modules name them."""
    return {_rename(name, _BACK): tensor for name, tensor in state.items()}


def _rename(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
