"""What the layers of one forward pass need to know about its rows: which skill, which tokens are real.

An MLP slot sees hidden states only, so a forward runs inside `with routing(...)`. Legend: B rows, T positions,
N counted tokens (T flattened with B), E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

_active: ContextVar["Routing | None"] = ContextVar("routing", default=None)


class Routed(NamedTuple):
    """One router's choices for the tokens that count: `probs_NE` (with gradient), `ids_NK`, `rows_N` (batch row)."""

    probs_NE: Tensor
    ids_NK: Tensor
    rows_N: Tensor


@dataclass(eq=False)
class Routing:
    """The state of one forward pass; `routed` fills up when `collect` is on, one entry per MoE."""

    task_B: Tensor
    valid_BT: Tensor
    package: str = "grounding"
    alpha_override: float | None = None
    collect: bool = False
    routed: dict[nn.Module, Routed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.valid_BT.ndim != 2 or self.task_B.shape != self.valid_BT.shape[:1]:
            seen = f"task_B {tuple(self.task_B.shape)}, valid_BT {tuple(self.valid_BT.shape)}"
            raise ValueError(f"routing: seen {seen}, expected [B] and [B, T]")

    @cached_property
    def skill_BT(self) -> Tensor:
        """True where a real token belongs to a row of a skill (task other than 0, understanding)."""
        return self.valid_BT & (self.task_B != 0)[:, None]

    @cached_property
    def valid_N(self) -> Tensor:
        """Flat positions of all real tokens."""
        return self.valid_BT.flatten().nonzero().squeeze(1)

    @cached_property
    def skill_N(self) -> Tensor:
        """Flat positions of the skill's real tokens; one host synchronisation for all layers."""
        return self.skill_BT.flatten().nonzero().squeeze(1)

    def record(self, moe: nn.Module, probs_TE: Tensor, ids_TK: Tensor) -> None:
        """Keep one router's output for the counted tokens: a skill's router saw only its own tokens, others saw all."""
        tokens_N = self.skill_N
        if probs_TE.shape[0] != tokens_N.shape[0]:
            assert probs_TE.shape[0] == self.valid_BT.numel(), "hidden states and valid_BT differ in shape"
            tokens_N = self.valid_N
            probs_TE, ids_TK = probs_TE.index_select(0, tokens_N), ids_TK.index_select(0, tokens_N)
        rows_N = tokens_N.div(self.valid_BT.shape[1], rounding_mode="floor")
        self.routed[moe] = Routed(probs_TE, ids_TK, rows_N)


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
    package: str = "grounding",
    alpha_override: float | None = None,
    collect: bool = False,
) -> AbstractContextManager[Routing]:
    """Open the context of one forward pass and yield its `Routing`.

    Args:
        task_B: 0 = understanding, otherwise the row is answered by `package`.
        valid_BT: True at real tokens, image tokens included; same [B, T] as the hidden states.
        package: name of the skill's experts in every twin layer.
        alpha_override: evaluate with this alpha in place of the learned one.
        collect: fill `Routing.routed` with the routers' probabilities and choices.
    """
    return _use(Routing(task_B, valid_BT.bool(), package, alpha_override, collect))


def keep_routing() -> tuple[AbstractContextManager, AbstractContextManager]:
    """`context_fn` of `torch.utils.checkpoint`: the recomputation in backward sees the routing of its own forward.

    Pass it wherever layers are checkpointed (`use_reentrant=False`); the `with routing(...)` block may have ended, and
    another one begun, when backward runs. What the recomputation collects is thrown away.
    """
    context = current_routing()
    return nullcontext(), _use(None if context is None else replace(context, routed={}))


def record_routing(moe: nn.Module, probs_TE: Tensor, ids_TK: Tensor) -> None:
    """Collect a router's output when the current routing asks for it."""
    context = current_routing()
    if context is not None and context.collect:
        context.record(moe, probs_TE, ids_TK)
