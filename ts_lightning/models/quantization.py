"""The frozen matrices of a decoder's layers in 8 or 4 bits; what trains beside them stays as it is.

int8: w ~ scale of its output x code, -127 to 127. nf4: w ~ scale of its block of 64 x one of 16 levels, the quantiles
of a normal distribution (QLoRA, arXiv 2305.14314, 3); two codes a byte, the first in the upper half. Only weights are
codes: a layer multiplies with the matrix that they stand for, made for each forward and again for its backward.

Legend: O outputs, I inputs, K blocks.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ts_lightning.models.moe import MoE

KINDS = ("int8", "nf4")
BLOCK = 64


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with codes in `weight` and `scale` for blocks of them; in and out as `nn.Linear`."""

    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.kind, self.dtype = kind, linear.weight.dtype
        codes, scale = (int8_codes if kind == "int8" else nf4_codes)(linear.weight.detach().float())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale if self.dtype == torch.float32 else scale.bfloat16())
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _Product.apply(x.to(dtype), self)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [O, I] that the codes stand for."""
        if self.kind == "int8":
            return self.weight.to(dtype) * self.scale.to(dtype)
        made = nf4_fast if find_spec("bitsandbytes") else nf4_values
        return made(self.weight, self.scale.float(), dtype).view(self.out_features, self.in_features)


class _Product(torch.autograd.Function):
    """x W^T + b without keeping W, or x, for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, layer.dense(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(grad.device.type, enabled=False):
            return grad @ ctx.layer.dense(grad.dtype), None


def quantize(layers: nn.ModuleList, kind: str) -> None:
    """Put quantised layers in place of the linear layers of `layers`, in place; routers stay.

    ValueError for an unknown kind, or a layer whose inputs are not whole blocks.
    """
    if kind not in KINDS:
        raise ValueError(f"quantization: seen {kind!r}, expected one of {', '.join(KINDS)}, or null")
    for parent in list(layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear or (isinstance(parent, MoE) and linear is parent.router):
                continue
            if kind == "nf4" and linear.in_features % BLOCK:
                raise ValueError(
                    f"quantization: seen {linear.in_features} inputs of {name}, expected a multiple of {BLOCK}"
                )
            setattr(parent, name, QuantizedLinear(linear, kind))


def int8_codes(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [O, I] and scales [O, 1]."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight_OI / scale_O1).round().to(torch.int8), scale_O1


@cache  # a copy to the device is nothing for every forward, and a CUDA graph can't have it
def nf4_levels(device: torch.device | None = None) -> Tensor:
    """The 16 levels of QLoRA: seven negative quantiles and the least, zero, eight positive ones, the largest 1."""
    most = 0.9677083
    ends = [torch.linspace(most, 0.5, n, dtype=torch.double)[:-1] for n in (8, 9)]
    negative, positive = -torch.special.ndtri(ends[0]), torch.special.ndtri(ends[1])
    levels = torch.cat([negative, positive.new_zeros(1), positive]).sort().values
    return (levels / levels.max()).float().to(device)


def nf4_codes(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes [O I / 2] and scales [K]: the nearest level of each weight."""
    blocks_KB = weight_OI.reshape(-1, BLOCK)
    scale_K = blocks_KB.abs().amax(1).clamp(min=1e-30)
    levels = nf4_levels(weight_OI.device)
    codes = torch.bucketize(blocks_KB / scale_K[:, None], (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scale_K


def nf4_values(codes: Tensor, scale_K: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [O I] of bytes and scales: the readable form."""
    levels = nf4_levels(codes.device)
    pairs = levels[torch.stack([codes >> 4, codes & 15], 1).long()]
    return (pairs.view(-1, BLOCK) * scale_K[:, None]).to(dtype).flatten()


def nf4_fast(codes: Tensor, scale_K: Tensor, dtype: torch.dtype) -> Tensor:
    """The same by the kernels of bitsandbytes."""
    functional: Any = import_module("bitsandbytes").functional
    state = functional.QuantState(
        absmax=scale_K,
        shape=torch.Size([2 * codes.numel()]),
        code=nf4_levels(codes.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    found: Tensor = functional.dequantize_4bit(codes.view(-1, 1), state)
    return found
