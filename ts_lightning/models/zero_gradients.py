"""Gradients of zero for parameters that had no part in an output: every rank and every step has the same set."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_zero_gradients(output: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return `output`, bitwise, as a function of the trainable ones of `parameters`, which get zeros from it."""
    trainable = [p for p in parameters if p.requires_grad] if torch.is_grad_enabled() else []
    return _ZeroGradients.apply(output, *trainable) if trainable else output


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
