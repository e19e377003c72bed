"""Continuous batching: answers join a running batch between two tokens, and leave it when they end.

All rows of the cache end at the same column, so that a step writes one column for all of them; a new row takes the
place of one that has ended. Legend as in `models.generate`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ts_lightning.grounding.coordinates import Size
from ts_lightning.models.cache import ROOM, GrowingLayer
from ts_lightning.models.constrain import Constraint
from ts_lightning.models.generate import DecodeState, Sampler, banned_tokens, greedy, prefill
from ts_lightning.models.packing import PAD_BRANCH

if TYPE_CHECKING:
    from ts_lightning.models.vlm import VLM

ROWS = 16
FAULT = "the server could not answer"  # begins the errors that are not the question's


class Likely(NamedTuple):
    """The log-probability of a token that was written, and the likeliest tokens with theirs."""

    logp: float
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Writing:
    """An answer while it is written: what it may be, its `tokens` so far (no end mark), and how it `ended`.

    constrain: the size of the picture in whose notation a begun box is finished (`models.constrain`); None: freely.
    top: how many of the likeliest tokens `likely` names beside each written one; None: no `likely`. ended: "" while it
    is written, "stop" (by itself), "length" (at `max_new_tokens`), "left" (nobody wants it), or an error's line.
    """

    max_new_tokens: int
    sampler: Sampler = greedy
    constrain: Size | None = None
    top: int | None = None
    tokens: list[int] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    ended: str = ""


class Batch:
    """At most `rows` answers that are written together, on any paths: a row's task chooses its experts.

    Where layers keep a recurrent state (a cache not of `GrowingLayer`s) rows can't be set beside others later on: they
    begin together, and the next ones follow when all of them have ended. within: the context of every forward.
    """

    def __init__(
        self, vlm: "VLM", rows: int = ROWS, within: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.vlm, self.rows, self.within = vlm, rows, within
        self._rows: list[Writing | None] = []  # of the state; None: ended, its place is free
        self._lengths: list[int] = []  # positions that each row's prompt and answer take
        self._state: DecodeState | None = None
        self._constraint: Constraint | None = None

    @property
    def active(self) -> list[Writing]:
        """What is being written."""
        return [one for one in self._rows if one is not None]

    @property
    def room(self) -> int:
        """How many may join."""
        return self.rows - len(self.active) if self._state is None or _layers(self._state) else 0

    @torch.no_grad()
    def join(self, batch: Mapping[str, Any], new: Sequence[Writing]) -> None:
        """Read the prompts of a left-padded batch; `step` writes their answers."""
        assert 0 < len(new) <= self.room, (len(new), self.room)
        with self.within():
            state, lengths = prefill(self.vlm, batch), batch["valid"].sum(1).tolist()
        free = [row for row, one in enumerate(self._rows) if one is None][: len(new)]
        if self._state is None:
            self._state, self._rows, self._lengths = state, list(new), lengths
        elif len(free) == len(new) and state.branch_BT.shape[1] <= self._state.branch_BT.shape[1]:
            self._state = _put(self._state, torch.tensor(free, device=state.logits_BV.device), state)
            for row, one, length in zip(free, new, lengths, strict=True):
                self._rows[row], self._lengths[row] = one, length
        else:
            self._keep_active(state)
            self._rows, self._lengths = [*self._rows, *new], [*self._lengths, *lengths]

    @torch.no_grad()
    def step(self) -> list[Writing]:
        """One more token of every answer; returns the answers, for some of them it was the last."""
        told, state = self.active, self._state
        if state is None:
            return []
        banned = torch.tensor(banned_tokens(self.vlm), device=state.logits_BV.device)
        logits_BV = state.logits_BV.index_fill(1, banned, -torch.inf)
        likeliest_B = logits_BV.argmax(-1).tolist()
        token_B = [self.vlm.pad_id] * len(self._rows)
        for row, one in enumerate(self._rows):
            if one is not None and not one.ended:
                token_B[row] = self._write(one, logits_BV[row], likeliest_B[row])
            if one is not None and one.ended:
                self._rows[row] = None
                self._leave(one)
        if not self.active:
            self.clear()
            return told
        with self.within():
            state.step(torch.tensor(token_B, device=state.logits_BV.device))
        self._lengths = [length + 1 for length in self._lengths]
        longest = max(length for length, one in zip(self._lengths, self._rows, strict=True) if one is not None)
        few, wide = 2 * len(self.active) <= len(self._rows), state.branch_BT.shape[1] >= 2 * longest + ROOM
        if (few or wide) and _layers(state):
            self._keep_active()
        return told

    def clear(self) -> None:
        """Forget what is being written."""
        for one in self.active:
            self._leave(one)
        self._state, self._rows, self._lengths = None, [], []

    def _leave(self, one: Writing) -> None:
        if self._constraint is not None:
            self._constraint.leave(id(one))

    def _write(self, one: Writing, logits_V: Tensor, likeliest: int) -> int:
        """Choose a token and take note of it; whatever fails here ends this answer alone."""
        try:
            return self._chosen(one, logits_V, likeliest)
        except Exception as error:
            logging.getLogger(__name__).exception("an answer could not be written")
            one.ended = one.ended or f"{FAULT} ({type(error).__name__})"
            return self.vlm.pad_id

    def _chosen(self, one: Writing, logits_V: Tensor, likeliest: int) -> int:
        left = one.max_new_tokens - len(one.tokens) - 1
        if one.constrain is not None:
            try:
                logits_V = logits_V.masked_fill(~self._allowed(one, one.constrain, left, logits_V), -torch.inf)
            except ValueError as error:
                one.ended = str(error)
                return self.vlm.pad_id
            likeliest = int(logits_V.argmax())
        row = torch.zeros(1, dtype=torch.long, device=logits_V.device)
        token = likeliest if one.sampler is greedy else int(one.sampler(logits_V[None], row))
        if one.constrain is not None and self._constraint is not None:
            self._constraint.read([token], [id(one)])
        if token == self.vlm.tokenizer.eos_token_id:
            one.ended = one.ended or "stop"  # "left" may have come from another thread
            return token
        if one.top is not None:
            logp_V = F.log_softmax(logits_V.float(), -1)
            best = logp_V.topk(one.top)
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            one.likely.append(Likely(float(logp_V[token]), top))
        one.tokens.append(token)
        if left <= 0:
            one.ended = one.ended or "length"
        return token

    def _allowed(self, one: Writing, size: Size, left: int, logits_V: Tensor) -> Tensor:
        vlm = self.vlm
        if self._constraint is None:
            stop = {vlm.tokenizer.eos_token_id}
            self._constraint = Constraint(vlm.tokenizer, vlm.codec, [], len(logits_V), stop)
        if not one.tokens:
            self._constraint.join(id(one), size)
        return self._constraint.allowed([id(one)], left)[0].to(logits_V.device)

    def _keep_active(self, new: DecodeState | None = None) -> None:
        """Drop rows that have ended and columns that nobody needs; set the rows of `new` below."""
        assert self._state is not None
        kept = [row for row, one in enumerate(self._rows) if one is not None]
        self._rows, self._lengths = [*self.active], [self._lengths[row] for row in kept]
        first = self._state.branch_BT.shape[1] - max(self._lengths, default=0)
        self._state = _moved(self._state, torch.tensor(kept, device=self._state.logits_BV.device), first, new)


def _layers(state: DecodeState) -> list[GrowingLayer]:
    """The layers of a cache that rows can be set into; none where some layer keeps a recurrent state."""
    layers: list[Any] = state.cache.layers
    return layers if all(isinstance(layer, GrowingLayer) for layer in layers) else []


def _put(state: DecodeState, rows_N: Tensor, new: DecodeState) -> DecodeState:
    """`state` with those of its rows replaced by the rows of `new`, which has no more columns."""
    for layer, other in zip(_layers(state), _layers(new), strict=True):
        layer.put(other, rows_N)
    branch_NT = F.pad(new.branch_BT, (state.branch_BT.shape[1] - new.branch_BT.shape[1], 0), value=PAD_BRANCH)
    return replace(
        state,
        logits_BV=state.logits_BV.index_copy(0, rows_N, new.logits_BV),
        branch_BT=state.branch_BT.index_copy(0, rows_N, branch_NT),
        position_B=state.position_B.index_copy(0, rows_N, new.position_B),
        task_B=state.task_B.index_copy(0, rows_N, new.task_B),
    )


def _moved(state: DecodeState, rows_R: Tensor, first: int, new: DecodeState | None) -> DecodeState:
    """Some rows of `state`, from column `first` on, and the rows of `new` below them."""
    layers = _layers(state)
    for layer, other in zip(layers, [None] * len(layers) if new is None else _layers(new), strict=True):
        layer.move(rows_R, first, other)
    both = {
        name: [getattr(state, name)[rows_R], *([] if new is None else [getattr(new, name)])]
        for name in ("logits_BV", "branch_BT", "position_B", "task_B", "own_BG")
    }
    both["branch_BT"][0] = both["branch_BT"][0][:, first:]
    length = max(one.shape[1] for one in both["branch_BT"])
    both["branch_BT"] = [F.pad(one, (length - one.shape[1], 0), value=PAD_BRANCH) for one in both["branch_BT"]]
    tensors: dict[str, Any] = {name: torch.cat(parts) for name, parts in both.items()}
    return replace(state, **tensors)
