"""Which parameter gets which weight decay and learning rate; when ranks exchange gradients."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.strategies import ParallelStrategy
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ts_lightning.models.moe import MoE

GROUPS = ("decay", "no_decay", "alpha")
RESTORED = ("lr", "momentum")


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
    """The optimizer over the trainable parameters, in the groups of `groups_of`; alpha's rate is multiplied.

    ValueError for the state of an optimizer over other weights.
    """
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
    optimizer.register_load_state_dict_pre_hook(_check_weights)
    return optimizer


def own_numbers(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The numbers of each group that a run takes from its configuration: weight decay, betas, eps.

    Rates are the schedule's to set; momentum and switches (amsgrad, fused) are the checkpoint's, as are the states they
    need.
    """
    return [
        {key: value for key, value in group.items() if type(value) in (int, float, tuple) and key not in RESTORED}
        for group in optimizer.param_groups
    ]


def keep_numbers(optimizer: Optimizer, own: list[dict[str, Any]]) -> None:
    """Put `own_numbers` back once a checkpoint was restored: not every optimizer and strategy calls hooks for that."""
    for group, numbers in zip(optimizer.param_groups, own, strict=True):
        cycled = "max_momentum" in group  # OneCycleLR sets betas at every step
        group.update({key: value for key, value in numbers.items() if not (cycled and key == "betas")})


def _check_weights(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """ValueError where a stored state is of other weights than those that train."""
    seen, expected = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if seen != expected:
        raise ValueError(
            f"checkpoint: seen an optimizer of {sum(seen)} weights, expected of the {sum(expected)} that train: other "
            "parts trained, or an older version trained what no picture reaches, too (to start from the weights alone "
            "use the vlm's init_from)"
        )


def build_schedule(make: Callable[[Optimizer], Any], optimizer: Optimizer, alpha_lr_factor: float = 1.0) -> Any:
    """The schedule of an optimizer of `build_optimizer`; OneCycleLR's own rates of alpha are multiplied, too."""
    schedule = make(optimizer)
    if isinstance(schedule, OneCycleLR):  # the others begin with the rates of the groups
        for group in optimizer.param_groups:
            if group["name"] == "alpha":
                group.update({key: group[key] * alpha_lr_factor for key in ("lr", "initial_lr", "max_lr", "min_lr")})
    return schedule


def without_exchange(strategy: Any) -> AbstractContextManager:
    """Forward and backward in this context leave gradients on their rank: later ones add to them, the last exchange."""
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
