"""Which parameter gets which weight decay and learning rate; norms of gradients, and when ranks exchange them."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ts_lightning.models.sharding import local

GROUP_NAMES = ("decay", "no_decay", "alpha")


def group_of(name: str, parameter: Parameter) -> str:
    """`alpha`; `no_decay` for routers and everything one-dimensional (norms, biases); else `decay`."""
    words = name.split(".")
    if "alpha" in words:
        return "alpha"
    return "no_decay" if "router" in words or parameter.ndim <= 1 else "decay"


def build_optimizer(
    make: Callable[[Iterable], Optimizer], named_parameters: Iterable[tuple[str, Parameter]], alpha_lr_factor: float
) -> Optimizer:
    """The optimizer over the trainable parameters, in the groups of `group_of`; alpha's rate is multiplied."""
    groups: dict[str, dict[str, Any]] = {name: {"params": [], "name": name} for name in GROUP_NAMES}
    groups["no_decay"]["weight_decay"] = groups["alpha"]["weight_decay"] = 0.0
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[group_of(name, parameter)]["params"].append(parameter)
    used = [group for group in groups.values() if group["params"]]
    if not used:
        raise ValueError("no trainable parameter: the patterns or the package of the vlm leave everything frozen")
    optimizer = make(used)
    for group in optimizer.param_groups:
        if group["name"] == "alpha":
            group["lr"] *= alpha_lr_factor
    return optimizer


def gradient_sync(strategy: Any, wanted: bool) -> AbstractContextManager:
    """Backward passes in this context exchange gradients between ranks if `wanted` (the last micro-batch's do)."""
    return nullcontext() if wanted or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, a scalar; of sharded ones the norm over all ranks."""
    kinds: dict[bool, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(isinstance(gradient, DTensor), []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(kind) for kind in kinds.values()]  # torch mixes no whole and sharded ones
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if len(whole) > 1 else whole[0] if whole else torch.zeros(())


def clip_sharded(optimizer: Optimizer, limit: float, algorithm: str) -> None:
    """Lightning's clipping, by "norm" or "value", where some gradients are sharded and some are whole."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    parts = [local(gradient) for gradient in gradients]
    if not parts:  # a step that is skipped
        return
    if algorithm == "value":
        torch._foreach_clamp_min_(parts, -limit)
        torch._foreach_clamp_max_(parts, limit)
    else:
        torch._foreach_mul_(parts, (limit / (total_norm(gradients) + 1e-6)).clamp(max=1.0))
