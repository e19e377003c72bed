"""The twin layer forward and backward: ours, a plain loop, torch's grouped product, DeepSpeed's layer, and a floor.

Understanding: 4 experts, top 2, frozen. Skill: 2 experts, top 1, trainable, with its router and alpha. All tokens are
real tokens of the skill, or, in the cases `mixed_*`, those of half of the rows are, and a fifth of each row is padding.
The floor is the same useful products as plain dense matmuls.

The form of low rank (`rank`) stands beside the full one over a dense MLP and over the four experts; its floor is the
frozen layer's products alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiMLP

from tools.bench.harness import Step, interleave, ratio, relative_error, report, saved_bytes, spread
from ts_lightning.models.low_rank import experts_of
from ts_lightning.models.moe import MoE, moe_loop, route
from ts_lightning.models.package import PackageOptions
from ts_lightning.models.routing import routing
from ts_lightning.models.twin import Alpha, Package, TwinExpert
from ts_lightning.models.twin_vlm import grounding_experts

Mixture = Callable[[Tensor, Tensor, Tensor, nn.ModuleList], Tensor]
SHAPES = {"H512_F2048_T2048": (512, 2048, 2048), "H1024_F4096_T2048": (1024, 4096, 2048)}
PADDING = 0.2  # of a row, in the mixed cases
ROWS = 8
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
TOLERANCE_GROUPED = {torch.float32: 1e-5, torch.bfloat16: 5e-2}  # torch sums its experts' bias gradients in bf16


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
        valid_BT = torch.ones(1, tokens, dtype=torch.bool, device=device)
        modules = {name: Ours(twin.to(device, dtype), valid_BT[:, 0].long(), valid_BT) for name, twin in forms.items()}
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


class Masked(nn.Module):
    """TWIST eq. 5-6 over the same parameters in plain autograd: on the skill's tokens the mixture, elsewhere IU.

    `mixture(x_TH, weights_TK, ids_TK, experts)` runs the experts; pads are computed as tokens of understanding.
    """

    def __init__(self, twin: TwinExpert, mixture: Mixture, skill_BT: Tensor) -> None:
        super().__init__()
        self.twin, self.mixture = twin, mixture
        self.tokens_N = skill_BT.flatten().nonzero().squeeze(1)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return alpha * IU + (1 - alpha) * VG where the skill is, IU elsewhere."""
        understanding, skill, mixing = parts(self.twin)
        x_TH = x_BTH.flatten(0, 1)
        iu_TH = self.run(understanding, x_TH)
        whole = len(self.tokens_N) == len(x_TH)
        mine_NH, iu_NH = (x_TH, iu_TH) if whole else (x_TH[self.tokens_N], iu_TH[self.tokens_N])
        vg_NH, alpha = self.run(skill, mine_NH), mixing().to(iu_TH.dtype)
        mixed_NH = alpha * iu_NH + (1 - alpha) * vg_NH
        return (mixed_NH if whole else iu_TH.index_copy(0, self.tokens_N, mixed_NH)).view_as(x_BTH)

    def run(self, moe: MoE, x_TH: Tensor) -> Tensor:
        """Return one mixture."""
        return self.mixture(x_TH, *route(x_TH, moe.router, moe.top_k)[1:], moe.experts)


class Grouped(Masked):
    """The same by `F.grouped_mm` on rows sorted by expert, over packed weights of its own: the host never waits."""

    def __init__(self, twin: TwinExpert, skill_BT: Tensor) -> None:
        super().__init__(twin, moe_loop, skill_BT)
        for name, moe in zip(("iu", "vg"), parts(twin), strict=False):
            for layer in ("fc1", "fc2"):
                for part, packed in packed_of(moe.experts, layer).items():
                    trains = next(moe.experts.parameters()).requires_grad
                    self.register_parameter(f"{name}_{layer}_{part}", nn.Parameter(packed, trains))

    def run(self, moe: MoE, x_TH: Tensor) -> Tensor:
        """Return one mixture."""
        name, count = "iu" if moe is self.twin.understanding else "vg", len(moe.experts)
        w_in, b_in, w_out, b_out = (
            getattr(self, f"{name}_{part}") for part in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
        )
        _, weights_TK, ids_TK = route(x_TH, moe.router, moe.top_k)
        order_N = ids_TK.flatten().argsort(stable=True)
        expert_N, token_N = ids_TK.flatten()[order_N], order_N // ids_TK.shape[1]
        ends = F.one_hot(expert_N, count).sum(0).cumsum(0).to(torch.int32)
        z_NF = F.grouped_mm(x_TH[token_N], w_in.transpose(1, 2), offs=ends) + b_in[expert_N]
        y_NH = F.grouped_mm(F.gelu(z_NF, approximate="tanh"), w_out.transpose(1, 2), offs=ends) + b_out[expert_N]
        weighted_NH = y_NH * weights_TK.flatten()[order_N, None].to(y_NH.dtype)
        return torch.zeros_like(x_TH).index_add(0, token_N, weighted_NH)


def packed_of(experts: nn.ModuleList, layer: str) -> dict[str, Tensor]:
    """Return copies of the experts' weights [E, out, in] and biases [E, out] of one linear layer."""
    return {
        part: torch.stack([getattr(getattr(expert, layer), part).detach() for expert in experts])
        for part in ("weight", "bias")
    }


class Ours(nn.Module):
    """The twin layer inside a routing: `task_B` and `valid_BT` as there."""

    def __init__(self, twin: TwinExpert, task_B: Tensor, valid_BT: Tensor) -> None:
        super().__init__()
        self.twin, self.task_B, self.valid_BT = twin, task_B, valid_BT

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return the twin layer's output."""
        with routing(self.task_B, self.valid_BT):
            return self.twin(x_BTH)


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


def floor(hidden: int, size: int, tokens: int, skilled: int, dtype: torch.dtype, device: str) -> Step:
    """Return a step of the same useful products: two experts a token forward and dX, one a skill's token, with dW."""
    w_in, w_out = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((hidden, size), (size, hidden)))
    x2, h2, x, h = (
        torch.randn(*shape, device=device, dtype=dtype)
        for shape in ((2 * tokens, hidden), (2 * tokens, size), (skilled, hidden), (skilled, size))
    )

    def step() -> None:
        for a, b in ((x2, w_in), (h2, w_out), (x2, w_out.T), (h2, w_in.T)):  # understanding
            a @ b
        for a, b in ((x, w_in), (h, w_out), (x, w_out.T), (h, w_in.T), (x.T, h), (h.T, x)):  # skill
            a @ b

    return step


def backward_step(module: nn.Module, x: Tensor, upstream: Tensor) -> Step:
    """Return forward and backward of `module`; its result is the input's and the parameters' gradients by name."""

    def step() -> dict[str, Any]:
        module.zero_grad(set_to_none=True)
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        output.backward(upstream)
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return {"output": output * (upstream != 0), "x": leaf.grad, **unpacked(found)}

    return step


def unpacked(gradients: dict[str, Tensor]) -> dict[str, Any]:
    """Return gradients of packed experts by the names of those that they are copies of."""
    found: dict[str, Any] = {}
    for name, gradient in gradients.items():
        if not name.startswith("vg_"):
            found[name] = gradient
            continue
        _, layer, part = name.split("_")
        found |= {f"twin.packages.grounding.experts.experts.{e}.{layer}.{part}": g for e, g in enumerate(gradient)}
    return found


def rows_of(tokens: int, mixed: bool, device: str) -> tuple[Tensor, Tensor]:
    """Return `task_B` and `valid_BT`: one row of the skill, or `ROWS` of both kinds with padding behind them."""
    if not mixed:
        return torch.ones(1, dtype=torch.long, device=device), torch.ones(1, tokens, dtype=torch.bool, device=device)
    length = tokens // ROWS
    valid_T = torch.arange(length, device=device) < round(length * (1 - PADDING))
    return torch.arange(ROWS, device=device) % 2, valid_T.expand(ROWS, -1).contiguous()


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int, mixed: bool = False
) -> dict[str, Any]:
    """Compare and time one shape; at pads nothing is compared, and no gradient comes from them."""
    torch.manual_seed(0)
    hidden, size, tokens = shape
    twin = make_twin(hidden, size).to(device)
    twin.understanding.to(dtype)
    twin.packages.to(dtype)
    task_B, valid_BT = rows_of(tokens, mixed, device)
    skill_BT = valid_BT & (task_B == 1)[:, None]
    x = torch.randn(*valid_BT.shape, hidden, device=device, dtype=dtype)
    upstream = torch.randn_like(x) * 0.1 * valid_BT[..., None]
    modules: dict[str, nn.Module] = {
        "ours": Ours(twin, task_B, valid_BT),
        "naive_loop": Masked(twin, moe_loop, skill_BT),
        "grouped_mm": Grouped(twin, skill_BT),
    }
    if not mixed and (peer := deepspeed_twin(twin)) is not None:
        modules["deepspeed"] = peer.to(device)
    steps = {name: backward_step(module, x, upstream) for name, module in modules.items()}
    ours, *peers = (steps[name]() for name in ("ours", "naive_loop", "grouped_mm"))
    assert all(ours.keys() <= theirs.keys() for theirs in peers)
    errors = [max(relative_error(ours[name], theirs[name]) for name in ours) for theirs in peers]
    correct = errors[0] <= TOLERANCE[dtype] and errors[1] <= TOLERANCE_GROUPED[dtype]
    weights = list(twin.parameters())
    kept = {
        name: saved_bytes(partial(modules[name], x.detach().requires_grad_()), weights)
        for name in ("ours", "naive_loop", "grouped_mm")
    }
    counted = int(valid_BT.sum()), int(skill_BT.sum())
    seconds = interleave({"floor": floor(hidden, size, *counted, dtype, device), **steps}, rounds) if correct else {}
    others = [name for name in modules if name != "ours"] if correct else []
    return {
        "correct": correct,
        "max_relative_error": max(errors),
        "ratios": {name: ratio(seconds, "ours", name) for name in others},
        "spread": {name: spread(seconds, "ours", name) for name in others},
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
        for kind in (name, f"mixed_{name}"):
            cases[kind] = measure(SHAPES[name], getattr(torch, dtype), device, rounds, kind != name)
        cases[name][f"rank_{rank}"] = low_rank(SHAPES[name], getattr(torch, dtype), device, rounds, rank)
        print(name, cases[name], cases[f"mixed_{name}"], flush=True)
    correct = all(case["correct"] for case in cases.values())
    peers = {peer for case in cases.values() for peer in case["ratios"]}
    return report(
        "twin",
        correct,
        ratios={
            peer: max(case["ratios"][peer] for case in cases.values() if peer in case["ratios"])
            for peer in sorted(peers)
        },
        floor_ratio=max(case["floor_ratio"] for case in cases.values()) if correct else None,
        saved_bytes_ratio=max(case["saved_bytes_ratio"] for case in cases.values()),
        dtype=dtype,
        threads=torch.get_num_threads(),
        cases=cases,
    )
