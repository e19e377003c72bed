"""What the layers of one forward pass need to know about its rows: which skill, which tokens are real.

transformers hands hidden states, and nothing else, to the MLP slot of a decoder layer: so a forward makes one `Routing`
and runs inside `with routing(...)`, where the slots find it. Nothing of it changes on the way but `routed`, which fills
up. Legend: B rows, T positions, N counted tokens (T flattened with B), E experts, K experts per token.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ts_lightning.grounding.tasks import GROUNDING

_active: ContextVar["Routing | None"] = ContextVar("routing", default=None)


class Routed(NamedTuple):
    """One router's choices for the tokens that count: `probs_NE` (with gradient), `ids_NK`, and where they stand.

    `tokens_N` are flat positions in [B, T], `rows_N` the rows of the batch.
    """

    probs_NE: Tensor
    ids_NK: Tensor
    rows_N: Tensor
    tokens_N: Tensor


@dataclass(eq=False)
class Routing:
    """The state of one forward pass; `routed` fills up when `collect` is on, one entry per MoE.

    `kept` is there in decoding alone: what a layer makes of its weights once for all steps, by the layer.
    """

    task_B: Tensor
    valid_BT: Tensor
    packages: tuple[str, ...] = (GROUNDING,)
    alpha_override: float | None = None
    collect: bool = False
    kept: dict[nn.Module, Any] | None = None
    routed: dict[nn.Module, Routed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.valid_BT.ndim != 2 or self.task_B.shape != self.valid_BT.shape[:1]:
            seen = f"task_B {tuple(self.task_B.shape)}, valid_BT {tuple(self.valid_BT.shape)}"
            raise ValueError(f"routing: seen {seen}, expected [B] and [B, T]")

    @cached_property
    def valid_N(self) -> Tensor:
        """Flat positions of all real tokens."""
        return self.valid_BT.flatten().nonzero().squeeze(1)

    def positions_of(self, package: str) -> Tensor:
        """[B, T] True at the real tokens that `package` answers."""
        return self.valid_BT & rows_of(package, self.packages, self.task_B)[:, None]

    @cached_property
    def tokens(self) -> dict[str, Tensor]:
        """Flat positions of each package's real tokens, packages without any left out.

        One host synchronisation a package serves all layers.
        """
        found = {name: self.positions_of(name).flatten().nonzero().squeeze(1) for name in dict.fromkeys(self.packages)}
        return {name: tokens_N for name, tokens_N in found.items() if len(tokens_N)}

    def record(self, moe: nn.Module, probs_TE: Tensor, ids_TK: Tensor, tokens_N: Tensor | None = None) -> None:
        """Keep one router's output for real tokens: those at the flat positions `tokens_N`, or all (None)."""
        if tokens_N is None:
            assert probs_TE.shape[0] == self.valid_BT.numel(), "hidden states and valid_BT differ in shape"
            tokens_N = self.valid_N
            probs_TE, ids_TK = probs_TE.index_select(0, tokens_N), ids_TK.index_select(0, tokens_N)
        rows_N = tokens_N.div(self.valid_BT.shape[1], rounding_mode="floor")
        self.routed[moe] = Routed(probs_TE, ids_TK, rows_N, tokens_N)

    def of_trained(self) -> list[Routed]:
        """What the routers that train did, by layer."""
        routers: Any = self.routed
        return [routed for moe, routed in routers.items() if moe.router.weight.requires_grad]


def rows_of(package: str, packages: Sequence[str], task_X: Tensor) -> Tensor:
    """True where a task (any shape) is answered by `package`: task k by the k-th of `packages`, any by an only one."""
    if len(packages) == 1:
        return task_X != 0 if package in packages else torch.zeros_like(task_X, dtype=torch.bool)
    answered = torch.zeros_like(task_X, dtype=torch.bool)
    for task, name in enumerate(packages, 1):
        if name == package:
            answered = answered | (task_X == task)
    return answered


def current_routing() -> Routing | None:
    """Return the routing of the running forward pass, None outside of one."""
    return _active.get()


@contextmanager
def _use(context: Any) -> Iterator[Any]:
    token = _active.set(context)
    try:
        yield context
    finally:
        _active.reset(token)


def routing(
    task_B: Tensor,
    valid_BT: Tensor,
    package: str | Sequence[str] = GROUNDING,
    alpha_override: float | None = None,
    collect: bool = False,
    kept: dict[nn.Module, Any] | None = None,
) -> AbstractContextManager[Routing]:
    """Open the context of one forward pass and yield its `Routing`.

    Args:
        task_B: 0 = understanding, otherwise the row is answered by a package.
        valid_BT: True at real tokens, image tokens included; same [B, T] as the hidden states.
        package: the package of every row of a skill, or the packages of tasks 1, 2, ... in turn.
        alpha_override: evaluate with this alpha in place of the learned one.
        collect: fill `Routing.routed` with the routers' probabilities and choices.
        kept: one dict for all steps of a decoding, whose weights don't change.
    """
    packages = (package,) if isinstance(package, str) else tuple(package)
    return _use(Routing(task_B, valid_BT.bool(), packages, alpha_override, collect, kept))


def keep_routing() -> tuple[AbstractContextManager, AbstractContextManager]:
    """`context_fn` of `torch.utils.checkpoint`: the recomputation in backward sees the routing of its own forward.

    Pass it wherever layers are checkpointed (`use_reentrant=False`); the `with routing(...)` block may have ended, and
    another one begun, when backward runs. What the recomputation collects is thrown away.
    """
    context = current_routing()
    return nullcontext(), _use(None if context is None else replace(context, routed={}))
