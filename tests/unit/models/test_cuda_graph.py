"""Decoding steps for a CUDA graph, on the CPU: the same tokens at fixed shapes, and nothing that a capture refuses.

Bitwise: tokens. Within 1e-5: log-probabilities.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.models.test_quantization import backbone
from tests.unit.models.test_shared_prefix import VLMS, prompt, tiny, twin
from ts_lightning.data.collate import collate
from ts_lightning.models import TwinExpertVLM, cuda_graph, low_rank, moe
from ts_lightning.models import twin as twin_layers
from ts_lightning.models.generate import DecodeState, prefill
from ts_lightning.models.packing import pad_left
from ts_lightning.models.vlm import VLM
from ts_lightning.rl import sampling
from ts_lightning.rl.sampling import Sampled, sample_groups

KINDS: dict[str, Any] = {
    **VLMS,
    "low_rank": lambda: TwinExpertVLM(tiny(), expert_rank=4),
    "int8": lambda: TwinExpertVLM(backbone(), expert_rank=4, quantization="int8"),
    "nf4": lambda: TwinExpertVLM(backbone(), expert_rank=4, quantization="nf4"),
}


def prompts(vlm: VLM) -> dict[str, Any]:
    return collate([vlm.encode(prompt(i, i), for_generation=True) for i in range(3)], vlm.pad_id)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_step_by_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ends, so answers leave; room for five tokens, so steps are captured anew in between."""
    vlm = KINDS[kind]().eval()
    end = torch.tensor([vlm.tokenizer.eos_token_id])
    vlm.__dict__["logits"] = lambda *given: type(vlm).logits(vlm, *given).index_fill(1, end, 4.0)
    captured = []
    monkeypatch.setattr(sampling, "check_graphs", lambda state: None)
    monkeypatch.setattr(cuda_graph, "ROOM", 5)
    monkeypatch.setattr(cuda_graph, "captured", lambda run: captured.append(run) or run)

    def draw(graph: bool) -> Sampled:
        return sample_groups(vlm, prompts(vlm), 4, 40, stop_after=None, seed=3, cuda_graph=graph)

    plain, graphed = draw(False), draw(True)
    assert len(captured) >= 3, "once for every five tokens, and after answers have left"
    assert graphed.tokens == plain.tokens
    assert len({len(ids) for group in plain.tokens for ids in group}) > 3
    torch.testing.assert_close(graphed.logp_NS, plain.logp_NS, rtol=0, atol=1e-5)


class HostTensors(TorchDispatchMode):
    """Operations that give a tensor of the host: in a capture, their copy to the device is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type == "cpu":
            self.found.append(str(function))
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_on_the_host(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: whatever waits for one (`item`, `nonzero`, a test of it) raises."""
    vlm = KINDS[kind]().eval()
    with torch.no_grad():
        state = prefill(vlm, pad_left(prompts(vlm))).expand(4)
    state.cuda_graph = True
    plain_autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else plain_autocast(kind, *a, **k)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    for module in (moe, twin_layers, low_rank):
        monkeypatch.setattr(module, "is_static", lambda x_TH: True)  # as on a GPU
    monkeypatch.setattr(moe.MoE, "_joined", lambda self, x_TH, context: None)
    monkeypatch.setattr(cuda_graph, "captured", lambda run: run)
    to_meta(state)
    token_N = torch.zeros(12, dtype=torch.long, device="meta")
    with torch.no_grad():
        state.step(token_N)  # the first is not captured
        with HostTensors() as host:
            for _ in range(2):
                state.step(token_N)
    assert host.found == []


def to_meta(state: DecodeState) -> None:
    """Move a state and its model to the device that has shapes alone."""
    state.vlm.to("meta")
    layers: list[Any] = state.cache.layers
    for layer in layers:
        end = layer.get_seq_length()
        layer.stores, layer.device = [store.to("meta") for store in layer.stores], torch.device("meta")
        layer.show(end)
    for name in ("logits_BV", "branch_BT", "position_B", "task_B", "own_BG"):
        setattr(state, name, getattr(state, name).to("meta"))


def test_on_a_cpu_it_is_refused() -> None:
    vlm = twin().eval()
    with pytest.raises(ValueError, match="cuda_graph: seen rollouts on cpu, expected a CUDA device"):
        sample_groups(vlm, prompts(vlm), 2, 3, cuda_graph=True)


def test_a_capture_bears_other_threads_and_says_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders pin memory, and NCCL looks at events, in threads of their own while a step is captured."""
    seen = []

    @contextmanager
    def graph(graph: Any, capture_error_mode: str = "global") -> Any:
        seen.append(capture_error_mode)
        yield

    def waits() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=seen.clear))
    cuda_graph.captured(lambda: None)
    assert seen == ["thread_local"]
    with pytest.raises(
        ValueError, match=r"cuda_graph: seen a step .*capturing\), expected .*cuda_graph: false"
    ) as told:
        cuda_graph.captured(waits)
    assert "\n" not in str(told.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_same_tokens(kind: str) -> None:
    vlm = KINDS[kind]().eval().cuda()
    batch = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in prompts(vlm).items()}
    plain, graphed = (sample_groups(vlm, batch, 4, 40, stop_after=None, cuda_graph=graph) for graph in (False, True))
    assert graphed.tokens == plain.tokens
