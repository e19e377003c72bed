"""Which parameter gets which weight decay and learning rate; when ranks exchange gradients."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.strategies import ParallelStrategy
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from ts_lightning.models.moe import MoE

GROUPS = ("decay", "no_decay", "alpha")


def groups_of(module: nn.Module) -> dict[str, list[Parameter]]:
    """The trainable parameters by the name of their group, in the module's order.

    A module that says `optimizer_group` gets that one ("alpha": no weight decay, a rate of its own). Otherwise routers
    and everything one-dimensional (norms, biases) have no weight decay, the rest has.
    """
    said: dict[Parameter, str] = {}
    for part in module.modules():
        if isinstance(part, MoE):
            said |= dict.fromkeys(part.router.parameters(), "no_decay")
        if group := getattr(part, "optimizer_group", None):
            said |= dict.fromkeys(part.parameters(), group)
    groups: dict[str, list[Parameter]] = {name: [] for name in GROUPS}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[said.get(parameter, "no_decay" if parameter.ndim <= 1 else "decay")].append(parameter)
    return groups


def build_optimizer(
    make: Callable[[Iterable], Optimizer], module: nn.Module, alpha_lr_factor: float = 1.0
) -> Optimizer:
    """The optimizer over the trainable parameters, in the groups of `groups_of`; alpha's rate is multiplied."""
    groups: list[dict[str, Any]] = [
        {"params": parameters, "name": name, **({} if name == "decay" else {"weight_decay": 0.0})}
        for name, parameters in groups_of(module).items()
        if parameters
    ]
    if not groups:
        raise ValueError("no trainable parameter: the patterns or the package of the vlm leave everything frozen")
    optimizer = make(groups)
    for group in optimizer.param_groups:
        if group["name"] == "alpha":
            group["lr"] *= alpha_lr_factor
    return optimizer


def without_exchange(strategy: Any) -> AbstractContextManager:
    """Forward and backward in this context leave gradients on their rank: later ones add to them, the last exchange."""
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
