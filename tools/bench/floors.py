"""What a GRPO step cannot be faster than: bytes at the device's copy bandwidth, products at its matmul rate."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ts_lightning.models.moe import MoE
from ts_lightning.models.vlm import VLM


@dataclass
class Probes:
    """Two steps to time beside the model's: a copy of `copied` bytes, read and written, and a product of `side`^3."""

    device: str
    dtype: torch.dtype
    copied: int = 2**32
    side: int = 8192
    products: int = 10

    def __post_init__(self) -> None:
        self.source = torch.zeros(self.copied, dtype=torch.uint8, device=self.device)
        self.target = torch.empty_like(self.source)
        self.left, self.right = torch.randn(2, self.side, self.side, device=self.device).to(self.dtype)
        self.product = torch.empty_like(self.left)

    def copy(self) -> None:
        """Move 2 * `copied` bytes."""
        self.target.copy_(self.source)

    def multiply(self) -> None:
        """Compute `flops`."""
        for _ in range(self.products):
            torch.mm(self.left, self.right, out=self.product)

    @property
    def moved(self) -> int:
        """Bytes of one `copy`."""
        return 2 * self.copied

    @property
    def flops(self) -> int:
        """Of one `multiply`."""
        return 2 * self.side**3 * self.products


def decode_bytes(vlm: VLM) -> int:
    """Bytes of weights that one decoding step of a group reads: every layer with all its experts, and the head."""
    weights: set[Tensor] = {*vlm.backbone.layers.parameters(), *vlm.backbone.head.parameters()}
    return sum(weight.nbytes for weight in weights)


def linear_flops(vlm: VLM, tokens: int, scored: int) -> float:
    """Of the linear layers forward and backward for `tokens`, `scored` of which pass the head.

    Each token passes its `top_k` experts. Input gradients begin behind the first layer that trains, weight gradients
    are those of what trains.
    """
    total, behind = 0.0, False
    for layer in vlm.backbone.layers:
        share = {
            linear: moe.top_k / len(moe.experts)
            for moe in layer.modules()
            if isinstance(moe, MoE)
            for linear in moe.experts.modules()
        }
        for linear in layer.modules():
            if isinstance(linear, nn.Linear):
                passes = 1 + behind + linear.weight.requires_grad
                total += 2 * linear.weight.numel() * tokens * share.get(linear, 1) * passes
        behind = behind or any(p.requires_grad for p in layer.parameters())
    return total + 2 * 2 * vlm.backbone.head.weight.numel() * scored


def attention_flops(vlm: VLM, prompt: int, group: int, steps: int) -> float:
    """Of attention forward and backward, for the pairs of positions that the mask lets through."""
    pairs = prompt * (prompt + 1) / 2 + group * (steps * prompt + steps * (steps + 1) / 2)
    total, behind = 0.0, False
    for layer in vlm.backbone.layers:
        width = len(layer.get_parameter("self_attn.q_proj.weight"))
        total += 4 * pairs * width * (3 if behind else 1)
        behind = behind or any(p.requires_grad for p in layer.parameters())
    return total


def update_flops(vlm: VLM, prompt: int, group: int, steps: int) -> float:
    """Of forward and backward of one group, its text prompt in it once."""
    scored = group * steps
    return linear_flops(vlm, prompt + scored, scored) + attention_flops(vlm, prompt, group, steps)
