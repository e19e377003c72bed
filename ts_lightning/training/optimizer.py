"""Which parameter gets which weight decay and learning rate; when ranks exchange gradients."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.strategies import ParallelStrategy
from torch.nn import Parameter
from torch.optim import Optimizer

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
