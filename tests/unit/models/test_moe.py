"""The MoE against a dense oracle, its three paths against each other, its gradients against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, PhiConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi.modeling_phi import PhiMLP

from ts_lightning.models import experts
from ts_lightning.models import moe as moe_module
from ts_lightning.models.moe import MoE, join, moe_joined, moe_loop, moe_static, route
from ts_lightning.models.routing import routing

H, F_SIZE, T = 16, 40, 57


def make_mlp(form: str) -> nn.Module:
    if form == "phi":
        return PhiMLP(PhiConfig(hidden_size=H, intermediate_size=F_SIZE, hidden_act="gelu_new"))
    config = LlamaConfig(hidden_size=H, intermediate_size=F_SIZE, num_attention_heads=2, mlp_bias=form == "biased")
    return LlamaMLP(config)


def make_moe(form: str = "phi", num_experts: int = 4, top_k: int = 2, dtype: torch.dtype = torch.float32) -> MoE:
    torch.manual_seed(0)
    moe = MoE.copies([make_mlp(form) for _ in range(num_experts)], num_experts, top_k).to(dtype)
    nn.init.normal_(moe.router.weight)
    for name, parameter in moe.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return moe


def dense_oracle(moe: MoE, x_TH: Tensor) -> Tensor:
    """Every expert on every token, weighted by a softmax over the chosen logits, written without the MoE's code."""
    logits_TE = x_TH @ moe.router.weight.T
    chosen_TE = logits_TE >= logits_TE.sort(-1).values[:, -moe.top_k, None]
    if moe.top_k == 1:
        weights_TE = logits_TE.softmax(-1) * chosen_TE
    else:
        weights_TE = logits_TE.masked_fill(~chosen_TE, -torch.inf).softmax(-1)
    return sum(weights_TE[:, e, None] * expert(x_TH) for e, expert in enumerate(moe.experts))


def gradients(output: Tensor, x: Tensor, moe: MoE) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(output, [x, *moe.parameters()], torch.randn_like(output)))


@pytest.mark.parametrize("form", ["phi", "llama", "biased"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("path", [moe_loop, experts.sorted_experts, moe_static])
def test_paths_equal_the_dense_oracle(form: str, top_k: int, path) -> None:
    moe = make_moe(form, top_k=top_k)
    x = torch.randn(T, H, requires_grad=True)
    _, weights, ids = route(x, moe.router, top_k)
    ours = path(x, weights, ids, moe.experts)
    expected = dense_oracle(moe, x)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    for mine, oracle in zip(gradients(ours, x, moe), gradients(expected, x, moe), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["phi", "llama", "biased"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_joined_experts_equal_the_dense_oracle(form: str, top_k: int) -> None:
    moe = make_moe(form, top_k=top_k)
    x = torch.randn(T, H)
    _, weights, ids = route(x, moe.router, top_k)
    ours = moe_joined(x, weights, ids, join(moe.experts, x.dtype), 4)
    torch.testing.assert_close(ours, dense_oracle(moe, x), atol=1e-6, rtol=1e-5)


def test_only_small_experts_are_joined_and_only_in_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    moe, x, kept = make_moe(), torch.randn(T, H), {}
    batch = torch.ones(1, dtype=torch.long), torch.ones(1, T, dtype=torch.bool)
    with torch.no_grad():
        with routing(*batch):
            expected = moe(x)
        with routing(*batch, kept=kept):
            torch.testing.assert_close(moe(x), expected, atol=1e-6, rtol=1e-5)
        assert list(kept) == [moe]
        monkeypatch.setattr(moe_module, "STATIC_TOKENS", T - 1)  # a prompt
        with routing(*batch, kept=kept):
            assert torch.equal(moe(x), expected)  # bitwise: the same path, the same products
    monkeypatch.setattr(moe_module, "SMALL_EXPERTS", 10)
    assert join(moe.experts, x.dtype) is None
    assert join(nn.ModuleList([nn.Linear(H, H)]), x.dtype) is None


@pytest.mark.parametrize("form", ["phi", "llama", "biased"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_gradcheck(form: str, top_k: int) -> None:
    moe = make_moe(form, num_experts=3, top_k=top_k, dtype=torch.float64)
    x = torch.randn(7, H, dtype=torch.float64, requires_grad=True)
    names, values = zip(*moe.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(moe, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_tanh_gelu_in_pieces_equals_torch(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "CACHED_ELEMENTS", rows * F_SIZE)
    torch.manual_seed(0)
    z = (2 * torch.randn(7, F_SIZE, dtype=torch.float64)).to(dtype)
    weight, upstream = torch.rand(7, 1, dtype=dtype), torch.randn(7, F_SIZE, dtype=dtype)
    exact = z.double().clone().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    slope = torch.autograd.grad(expected.sum(), exact)[0]
    tolerance = {"atol": torch.finfo(dtype).eps * 50, "rtol": torch.finfo(dtype).eps * 10}
    torch.testing.assert_close(experts.hidden(experts.tanh_gelu, [z]), expected.to(dtype), **tolerance)
    hidden, dot, (dz,) = experts.hidden_backward(experts.tanh_gelu, [z], upstream.clone(), weight, True)
    torch.testing.assert_close(hidden, expected.to(dtype), **tolerance)
    torch.testing.assert_close(dz, (weight * slope * upstream).to(dtype), **tolerance)
    torch.testing.assert_close(dot, (expected * upstream).sum(-1).to(dtype), atol=tolerance["atol"] * 10, rtol=0.1)


def test_frozen_experts_pass_the_gradient_and_get_none() -> None:
    moe = make_moe().requires_grad_(False)
    x = torch.randn(T, H, requires_grad=True)
    moe(x).sum().backward()
    expected = torch.autograd.grad(dense_oracle(moe, x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-5)
    assert all(parameter.grad is None for parameter in moe.parameters())


@pytest.mark.parametrize("path", [moe_loop, experts.sorted_experts])
def test_expert_without_tokens_gets_zero_gradients(path) -> None:
    moe = make_moe(num_experts=3, top_k=1)
    x = torch.randn(T, H)
    path(x, torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.long), moe.experts).sum().backward()
    assert moe.experts[0].fc1.weight.grad.abs().sum() > 0
    for expert in moe.experts[1:]:
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in expert.parameters())


def test_top_1_weight_is_the_probability_and_top_2_sums_to_one() -> None:
    router = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    x = torch.tensor([[2.0, 5.0], [-1.0, 5.0]])
    _, weights, ids = route(x, router, 1)
    assert ids.tolist() == [[1], [0]]
    # softmax of [0, 2] at 1 is e^2 / (1 + e^2) = 0.880797; of [0, -1] at 0 it is 1 / (1 + e^-1) = 0.731059
    torch.testing.assert_close(weights, torch.tensor([[0.880797], [0.731059]]))
    _, weights, ids = route(x, router, 2)
    assert ids.tolist() == [[1, 0], [0, 1]]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


def test_adapted_linear_takes_the_loop() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    moe = make_moe()
    x = torch.randn(T, H)
    before = moe(x)
    for expert in moe.experts:
        expert.fc2.__class__ = Doubled
    torch.testing.assert_close(moe(x), 2 * before)


def test_bf16_autocast_with_frozen_bf16_and_trainable_fp32() -> None:
    moe = make_moe()
    x = torch.randn(T, H)
    exact = moe(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = moe(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.05, rtol=0.05)
    mixed.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in moe.parameters())
    frozen = make_moe().bfloat16().requires_grad_(False)
    torch.testing.assert_close(frozen(x.bfloat16()).float(), exact, atol=0.05, rtol=0.05)


def test_router_gradient_does_not_need_trainable_experts() -> None:
    moe = make_moe(top_k=1)
    moe.experts.requires_grad_(False)
    x = torch.randn(T, H)
    moe(x).square().sum().backward()
    expected = torch.autograd.grad(dense_oracle(moe, x).square().sum(), moe.router.weight)[0]
    torch.testing.assert_close(moe.router.weight.grad, expected, atol=1e-4, rtol=1e-5)


def test_collects_valid_tokens_only_inside_routing() -> None:
    moe = make_moe()
    x = torch.randn(2, 3, H)
    valid = torch.tensor([[True, True, False], [False, True, False]])
    with routing(torch.zeros(2), valid, collect=True) as active:
        moe(x)
    routed = active.routed[moe]
    assert routed.rows_N.tolist() == [0, 0, 1]
    torch.testing.assert_close(routed.probs_NE, F.linear(x[valid], moe.router.weight).softmax(-1))
    assert routed.probs_NE.requires_grad
    assert routed.ids_NK.shape == (3, 2)
    with routing(torch.zeros(2), valid) as active:
        moe(x)
    assert not active.routed


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k: seen 3, expected 1 to 2"):
        MoE.copies(make_mlp("phi"), 2, 3)
    with pytest.raises(ValueError, match="expected no bias and out_features=2"):
        MoE(nn.ModuleList([make_mlp("phi"), make_mlp("phi")]), nn.Linear(H, 2), 1)
