"""Decoding steps of fixed shapes, recorded once as a CUDA graph and launched again for every further token.

A step of few answers is hundreds of small kernels: the host needs longer to start them than the device to run them.
Legend: B prompts, G answers of each, C positions of the cache with room, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ts_lightning.models.cache import GrowingLayer
from ts_lightning.models.packing import PAD_BRANCH

if TYPE_CHECKING:
    from ts_lightning.models.generate import DecodeState

ROOM = 64  # tokens of every answer, until a step is recorded anew


class GraphedStep:
    """`DecodeState.step` on tensors that stay where they are: for the same answers, until the room is full.

    The first token is computed as ever (libraries load kernels and take their memory), the second is recorded, and from
    then on the record is launched. The state can be read after every token as without it.
    """

    def __init__(self, state: "DecodeState") -> None:
        self.answers = state.own_BG.shape[1]
        layers: Any = state.cache.layers
        self.layers: list[Any] = list(layers)
        self.end = state.cache.get_seq_length()
        self.limit = self.end + ROOM * self.answers
        device = state.own_BG.device
        self.places_G = torch.arange(self.end, self.end + self.answers, device=device)
        for layer in self.layers:
            layer.write_at(self.places_G, self.limit)
        room = self.limit - self.end
        self.branch_BC = torch.nn.functional.pad(state.branch_BT, (0, room), value=PAD_BRANCH)
        self.position_B = state.position_B.clone()
        self.token_BG = torch.zeros_like(state.own_BG)
        self.logits_BV: Tensor | None = None
        self.launch: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another token of every answer."""
        return self.end + self.answers > self.limit

    def __call__(self, state: "DecodeState", token_B: Tensor) -> None:
        """Read one more token of every answer."""
        self.token_BG.copy_(token_B.view_as(self.token_BG))
        if self.logits_BV is None:
            self.logits_BV = self._run(state)
        else:
            self.launch = self.launch or captured(partial(self._run_again, state, self.logits_BV))
            self.launch()
        self.end += self.answers
        for layer in self.layers:
            layer.show(self.end)
        state.branch_BT, state.position_B = self.branch_BC[:, : self.end], self.position_B
        state.logits_BV = self.logits_BV

    def _run(self, state: "DecodeState") -> Tensor:
        """The logits of a step; all else that it changes, it changes in place, where the next launch looks for it."""
        self.branch_BC.index_copy_(1, self.places_G, state.own_BG)
        logits_BV = state.read(self.token_BG, self.branch_BC, self.position_B)
        self.position_B += 1
        self.places_G += self.answers
        return logits_BV

    def _run_again(self, state: "DecodeState", logits_BV: Tensor) -> None:
        logits_BV.copy_(self._run(state))


def check_graphs(state: "DecodeState") -> None:
    """ValueError where steps can't be captured: not on CUDA, or layers that keep another state than keys and values."""
    if (seen := state.logits_BV.device.type) != "cuda":
        raise ValueError(f"cuda_graph: seen rollouts on {seen}, expected a CUDA device")
    if not all(isinstance(layer, GrowingLayer) for layer in state.cache.layers):
        name = state.vlm.backbone.name
        raise ValueError(
            f"cuda_graph: seen {name}, whose recurrent layers keep a state, expected keys and values alone"
        )


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """What launches again all that `run` would launch on the device; `run` itself computes nothing here.

    Other threads, of loaders and NCCL, may use the device meanwhile. ValueError for what CUDA refuses to capture.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        first: Any = error.__context__ or error  # what was refused, before the capture could not end
        seen = f"a step that CUDA can't capture ({str(first).splitlines()[0]})"
        raise ValueError(
            f"cuda_graph: seen {seen}, expected one that the host never waits for, or cuda_graph: false"
        ) from error
    return graph.replay
