"""The twin layer forward and backward: ours, the loop that everyone writes, DeepSpeed's layer, and the matmul floor.

Understanding: 4 experts, top 2, frozen. Skill: 2 experts, top 1, trainable, with its router and alpha. All tokens are
real tokens of the skill. The floor is the same useful products as plain dense matmuls.

The form of low rank (`rank`) stands beside the full one over a dense MLP and over the four experts; its floor is the
frozen layer's products alone.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiMLP

from tools.bench.harness import Step, interleave, ratio, relative_error, report, saved_bytes
from ts_lightning.models.low_rank import experts_of
from ts_lightning.models.moe import MoE, moe_loop, route
from ts_lightning.models.package import PackageOptions
from ts_lightning.models.routing import routing
from ts_lightning.models.twin import Alpha, Package, TwinExpert
from ts_lightning.models.twin_vlm import grounding_experts

SHAPES = {"H512_F2048_T2048": (512, 2048, 2048), "H1024_F4096_T2048": (1024, 4096, 2048)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make_twin(hidden: int, size: int) -> TwinExpert:
    """Build the twin layer with four and two random experts and routers that spread the tokens."""
    config = PhiConfig(hidden_size=hidden, intermediate_size=size, hidden_act="gelu_pytorch_tanh")
    understanding = MoE.copies([PhiMLP(config) for _ in range(4)], 4, top_k=2)
    skill = MoE.copies([PhiMLP(config) for _ in range(2)], 2, top_k=1)
    for moe in (understanding, skill):
        nn.init.normal_(moe.router.weight, std=0.16)
    return TwinExpert(understanding, nn.ModuleDict({"grounding": Package(skill, Alpha(0.5))}))


def make_low_rank(hidden: int, size: int, rank: int | None, dense: bool) -> TwinExpert:
    """Build the twin layer over a dense MLP or four experts, with two experts of low rank or (None) full copies."""
    config = PhiConfig(hidden_size=hidden, intermediate_size=size, hidden_act="gelu_pytorch_tanh")
    understanding = PhiMLP(config) if dense else MoE.copies([PhiMLP(config) for _ in range(4)], 4, top_k=2)
    skill = grounding_experts(experts_of(understanding), PackageOptions(expert_rank=rank))
    for moe in (understanding, skill):
        if isinstance(moe, MoE):
            nn.init.normal_(moe.router.weight, std=0.16)
    return TwinExpert(understanding, nn.ModuleDict({"grounding": Package(skill, Alpha(0.5))}))


def low_rank(shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int, rank: int) -> dict[str, Any]:
    """Time and saved bytes of the form of low rank, against the frozen layer's products and against the full form."""
    hidden, size, tokens = shape
    x = torch.randn(1, tokens, hidden, device=device, dtype=dtype)
    figures: dict[str, Any] = {}
    for base in ("dense", "moe"):
        forms = {name: make_low_rank(hidden, size, r, base == "dense") for name, r in (("rank", rank), ("full", None))}
        modules = {name: Ours(twin.to(device, dtype)) for name, twin in forms.items()}
        steps = {name: backward_step(module, x, torch.ones_like(x)) for name, module in modules.items()}
        leaf = x.detach().requires_grad_()
        kept = {name: saved_bytes(partial(m, leaf), list(m.parameters())) for name, m in modules.items()}
        alone = frozen_products(hidden, size, tokens * (1 if base == "dense" else 2), dtype, device)
        seconds = interleave({"floor": alone, **steps}, rounds)
        figures[base] = {
            "floor_ratio": ratio(seconds, "rank", "floor"),
            "full_floor_ratio": ratio(seconds, "full", "floor"),
            "saved_bytes_ratio": round(kept["rank"] / kept["full"], 3),
        }
    return figures


def frozen_products(hidden: int, size: int, tokens: int, dtype: torch.dtype, device: str) -> Step:
    """Return a step of the frozen layer's products: forward, and the gradient of its input."""
    shapes = ((tokens, hidden), (hidden, size), (size, hidden), (tokens, size))
    x, w_in, w_out, h = (torch.randn(*s, device=device, dtype=dtype) for s in shapes)

    def step() -> None:
        for a, b in ((x, w_in), (h, w_out), (x, w_out.T), (h, w_in.T)):
            a @ b

    return step


def parts(twin: TwinExpert) -> tuple[MoE, MoE, Alpha]:
    """Return the understanding MoE, the skill's MoE and alpha."""
    package = twin.packages["grounding"]
    return twin.understanding, package.experts, package.alpha  # type: ignore[return-value]


class Naive(nn.Module):
    """TWIST eq. 5-6 over the same parameters by `where`, `index_add` and plain autograd."""

    def __init__(self, twin: TwinExpert) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, x_1TH: Tensor) -> Tensor:
        """Return alpha * IU + (1 - alpha) * VG."""
        *moes, mixing = parts(self.twin)
        x_TH = x_1TH[0]
        iu_TH, vg_TH = (moe_loop(x_TH, *route(x_TH, moe.router, moe.top_k)[1:], moe.experts) for moe in moes)
        alpha = mixing().to(iu_TH.dtype)
        return (alpha * iu_TH + (1 - alpha) * vg_TH)[None]


class Ours(nn.Module):
    """The twin layer inside a routing where every row is the skill's."""

    def __init__(self, twin: TwinExpert) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, x_1TH: Tensor) -> Tensor:
        """Return the twin layer's output."""
        everything = torch.ones(x_1TH.shape[:2], device=x_1TH.device)
        with routing(everything[:, 0], everything):
            return self.twin(x_1TH)


def deepspeed_twin(twin: TwinExpert) -> nn.Module | None:
    """Return DeepSpeed's MoE layer over copies of the same experts (capacity factor 1.5), None if not installed."""
    try:
        from deepspeed.moe.experts import Experts
        from deepspeed.moe.sharded_moe import MOELayer, TopKGate
    except ImportError:
        return None

    class DeepSpeedTwin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            understanding, skill, _ = parts(twin)
            self.iu = self.layer(understanding, 2).requires_grad_(False)
            self.vg = self.layer(skill, 1).requires_grad_(True)
            self.alpha = nn.Parameter(torch.tensor(0.5))

        @staticmethod
        def layer(moe: MoE, k: int) -> nn.Module:
            count = len(moe.experts)
            gate = TopKGate(moe.router.in_features, count, k, 1.5, 2.0, 0, top2_2nd_expert_sampling=False)
            gate.wg.weight.data.copy_(moe.router.weight)
            experts = Experts(moe.experts[0], count, "single")
            experts.load_state_dict({f"deepspeed_experts.{k}": v for k, v in moe.experts.state_dict().items()})
            return MOELayer(gate, experts, "single", 1, count)

        def forward(self, x_1TH: Tensor) -> Tensor:
            return self.alpha * self.iu(x_1TH, None) + (1 - self.alpha) * self.vg(x_1TH, None)

    return DeepSpeedTwin()


def floor(hidden: int, size: int, tokens: int, dtype: torch.dtype, device: str) -> Step:
    """Return a step of the same useful products: twice two experts forward and dX, one expert with dW as well."""
    x, w_in = torch.randn(tokens, hidden), torch.randn(hidden, size)
    w_out, h = torch.randn(size, hidden), torch.randn(tokens, size)
    x, w_in, w_out, h = (t.to(device, dtype) for t in (x, w_in, w_out, h))
    x2, h2 = x.repeat(2, 1), h.repeat(2, 1)

    def step() -> None:
        for a, b in ((x2, w_in), (h2, w_out), (x2, w_out.T), (h2, w_in.T)):  # understanding
            a @ b
        for a, b in ((x, w_in), (h, w_out), (x, w_out.T), (h, w_in.T), (x.T, h), (h.T, x)):  # skill
            a @ b

    return step


def backward_step(module: nn.Module, x: Tensor, upstream: Tensor) -> Step:
    """Return forward and backward of `module`; its result is (output, input gradient, parameter gradients)."""

    def step() -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        output.backward(upstream)
        return [output, leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)]  # type: ignore[list-item]

    return step


def measure(shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    """Compare and time one shape."""
    torch.manual_seed(0)
    hidden, size, tokens = shape
    twin = make_twin(hidden, size).to(device)
    twin.understanding.to(dtype)
    twin.packages.to(dtype)
    x = torch.randn(1, tokens, hidden, device=device, dtype=dtype)
    upstream = torch.randn_like(x) * 0.1
    modules: dict[str, nn.Module] = {"ours": Ours(twin), "naive_loop": Naive(twin)}
    if (peer := deepspeed_twin(twin)) is not None:
        modules["deepspeed"] = peer.to(device)
    steps = {name: backward_step(module, x, upstream) for name, module in modules.items()}
    pairs = list(zip(steps["ours"](), steps["naive_loop"](), strict=True))
    error = max(relative_error(seen, expected) for seen, expected in pairs)
    correct = error <= TOLERANCE[dtype]
    weights = list(twin.parameters())
    kept = {
        name: saved_bytes(partial(modules[name], x.detach().requires_grad_()), weights)
        for name in ("ours", "naive_loop")
    }
    seconds = interleave({"floor": floor(hidden, size, tokens, dtype, device), **steps}, rounds) if correct else {}
    return {
        "correct": correct,
        "max_relative_error": error,
        "ratios": {peer: ratio(seconds, "ours", peer) for peer in modules if peer != "ours"} if correct else {},
        "floor_ratio": ratio(seconds, "ours", "floor") if correct else None,
        "naive_floor_ratio": ratio(seconds, "naive_loop", "floor") if correct else None,
        "saved_bytes_ratio": round(kept["ours"] / kept["naive_loop"], 3),
        "saved_mib": {name: round(count / 2**20, 1) for name, count in kept.items()},
    }


def main(
    rounds: int = 5, dtype: str = "float32", device: str = "cpu", shapes: list[str] | None = None, rank: int = 16
) -> int:
    """Run all shapes; the ratios of the JSON line are the worst over them, `cases` has each."""
    cases = {}
    for name in shapes or list(SHAPES):
        cases[name] = measure(SHAPES[name], getattr(torch, dtype), device, rounds)
        cases[name][f"rank_{rank}"] = low_rank(SHAPES[name], getattr(torch, dtype), device, rounds, rank)
        print(name, cases[name], flush=True)
    correct = all(case["correct"] for case in cases.values())
    peers = {peer for case in cases.values() for peer in case["ratios"]}
    return report(
        "twin",
        correct,
        ratios={peer: max(case["ratios"][peer] for case in cases.values()) for peer in sorted(peers)}
        if correct
        else {},
        floor_ratio=max(case["floor_ratio"] for case in cases.values()) if correct else None,
        saved_bytes_ratio=max(case["saved_bytes_ratio"] for case in cases.values()),
        dtype=dtype,
        threads=torch.get_num_threads(),
        cases=cases,
    )
