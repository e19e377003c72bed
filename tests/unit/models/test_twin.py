"""The twin layer against TWIST eq. 5-6 written out, its bitwise guarantee, and gradients that always exist.

Bitwise: the same modules run on the same rows.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiMLP

from ts_lightning.models.moe import MoE
from ts_lightning.models.package import PackageOptions
from ts_lightning.models.routing import routing
from ts_lightning.models.twin import Alpha, Package, TwinExpert

B, T, H = 3, 5, 8
TASK = torch.tensor([0, 1, 1])
VALID = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
SKILL = VALID & (TASK == 1)[:, None]


def make_mlp() -> PhiMLP:
    return PhiMLP(PhiConfig(hidden_size=H, intermediate_size=20, num_attention_heads=2))


def make_twin(alpha: float = 0.3, form: str = "raw", dense: bool = False, skills: tuple[str, ...] = ("grounding",)):
    torch.manual_seed(0)
    understanding = make_mlp() if dense else MoE.copies([make_mlp() for _ in range(4)], 4, 2)
    packages = {name: Package(MoE.copies([make_mlp(), make_mlp()], 2, 1), Alpha(alpha, form)) for name in skills}
    twin = TwinExpert(understanding, nn.ModuleDict(packages))
    for name, parameter in twin.named_parameters():
        if "router" in name:
            nn.init.normal_(parameter)
    return twin


def hidden() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, T, H)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("form", ["raw", "sigmoid"])
def test_equations_5_and_6(dense: bool, form: str) -> None:
    twin, h = make_twin(alpha=0.3, form=form, dense=dense), hidden().requires_grad_()
    with routing(TASK, VALID):
        out = twin(h)
    iu, vg = twin.understanding(h), twin.packages["grounding"].experts(h)
    expected = torch.where(SKILL[..., None], 0.3 * iu + 0.7 * vg, iu)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    alpha = twin.packages["grounding"].alpha.value
    upstream = torch.randn_like(out)
    got = torch.autograd.grad(out, [h, alpha], upstream, retain_graph=True)
    # d out / d alpha = IU - VG on the skill's tokens; for sigmoid times alpha (1 - alpha) = 0.21
    slope = 0.21 if form == "sigmoid" else 1.0
    by_hand = slope * (upstream * (iu - vg))[SKILL].sum()
    torch.testing.assert_close(got[0], torch.autograd.grad(expected, h, upstream)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], by_hand, atol=1e-5, rtol=1e-5)


def test_all_rows_of_the_skill_and_no_padding() -> None:
    twin, h = make_twin(alpha=0.3), hidden()
    with routing(torch.ones(B), torch.ones(B, T)):
        out = twin(h)
    torch.testing.assert_close(out, 0.3 * twin.understanding(h) + 0.7 * twin.packages["grounding"].experts(h))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_understanding_batch_is_bitwise_the_untouched_layer(dense: bool, grad: bool) -> None:
    twin, h = make_twin(dense=dense), hidden()
    with torch.set_grad_enabled(grad):
        with routing(torch.zeros(B), VALID):
            out = twin(h)
        # bitwise, signs of zeros included: the layer runs its understanding expert, on the same rows, and nothing else
        assert torch.equal(out.view(torch.int32), twin.understanding(h).view(torch.int32))
        assert torch.equal(twin(h), out)  # and so is the layer outside of a routing


def test_understanding_rows_do_not_change_beside_skill_rows() -> None:
    twin, h = make_twin(), hidden()
    with routing(TASK, VALID):
        out = twin(h)
    assert torch.equal(out[~SKILL], twin.understanding(h)[~SKILL])  # bitwise: it always sees the whole batch


def test_padding_reaches_nothing() -> None:
    twin, h = make_twin(), hidden()
    broken = torch.where(VALID[..., None], h, torch.nan)
    with routing(TASK, VALID):
        out = twin(broken)
        out[VALID].sum().backward()
        torch.testing.assert_close(out[VALID], twin(h)[VALID], atol=1e-6, rtol=1e-6)
    assert all(p.grad.isfinite().all() for p in twin.packages.parameters())


@pytest.mark.parametrize(
    ("task", "override"), [(torch.zeros(B), None), (TASK, None), (TASK, 0.5), (TASK, 1.0)], ids=str
)
def test_every_trainable_parameter_gets_a_gradient(task: Tensor, override: float | None) -> None:
    twin = make_twin(skills=("grounding", "counting"))
    with routing(task, VALID, alpha_override=override):
        twin(hidden()).square().sum().backward()
    assert all(p.grad is None for p in twin.understanding.parameters())
    assert all(p.grad is not None for p in twin.packages.parameters())
    assert not any(p.grad.any() for p in twin.packages["counting"].parameters())
    trained = task.any() and override != 1
    assert bool(twin.packages["grounding"].experts.router.weight.grad.any()) == trained
    assert bool(twin.packages["grounding"].alpha.value.grad.any()) == (trained and override is None)


def test_alpha_override() -> None:
    twin, h = make_twin(), hidden()
    package = twin.packages["grounding"]
    with torch.no_grad(), routing(TASK, VALID, alpha_override=0.0):
        torch.testing.assert_close(twin(h)[SKILL], package.experts(h)[SKILL])
    with torch.no_grad(), routing(TASK, VALID, alpha_override=1.0):
        assert torch.equal(twin(h), twin.understanding(h))


def test_one_scalar_or_one_per_layer() -> None:
    shared = Alpha(0.5)
    layers = [TwinExpert(make_mlp(), nn.ModuleDict({"grounding": Package(make_mlp(), shared)})) for _ in range(2)]
    h = hidden()
    with routing(TASK, VALID):
        layers[1](layers[0](h)).sum().backward()
    assert len({p for layer in layers for p in layer.packages.parameters()}) == 2 * 4 + 1
    assert shared.value.grad.abs() > 0


def test_the_named_package_answers() -> None:
    twin, h = make_twin(skills=("grounding", "counting")), hidden()
    with torch.no_grad(), routing(TASK, VALID, package="counting", alpha_override=0.0):
        torch.testing.assert_close(twin(h)[SKILL], twin.packages["counting"].experts(h)[SKILL])
    with torch.no_grad(), routing(TASK, VALID, package="reading"):  # this layer has no experts of it
        assert torch.equal(twin(h), twin.understanding(h))


@pytest.mark.parametrize("grad", [False, True])
def test_each_row_names_its_package(grad: bool) -> None:
    twin, h = make_twin(skills=("grounding", "counting")), hidden()
    task = torch.tensor([2, 0, 1])
    with torch.set_grad_enabled(grad), routing(task, VALID, ("grounding", "counting"), collect=True) as active:
        out = twin(h)
    iu = twin.understanding(h)
    for row, name in ((0, "counting"), (2, "grounding")):
        expected = 0.3 * iu[row] + 0.7 * twin.packages[name].experts(h[row])
        torch.testing.assert_close(out[row][VALID[row]], expected[VALID[row]], atol=1e-6, rtol=1e-6)
    assert torch.equal(out[1], iu[1])  # bitwise: understanding experts always see the whole batch
    assert torch.equal(out[~VALID], iu[~VALID])
    rows = {name: active.routed[twin.packages[name].experts].rows_N.tolist() for name in twin.packages}
    assert rows == {"grounding": [2, 2, 2], "counting": [0, 0, 0, 0]}
    if grad:
        out.sum().backward()
        assert all(p.grad.any() for p in twin.packages.parameters() if p.ndim)


def test_static_path_equals_the_sorted_one() -> None:
    twin, h = make_twin(skills=("grounding", "counting")), hidden()
    with torch.no_grad(), routing(torch.tensor([2, 0, 1]), VALID, ("grounding", "counting")) as active:
        static = twin._static(twin.understanding(h), h, active)
        torch.testing.assert_close(static, twin(h), atol=1e-6, rtol=1e-6)


def test_routers_of_the_skill_are_collected_for_its_tokens() -> None:
    twin, h = make_twin(), hidden()
    with routing(TASK, VALID, collect=True) as active:
        twin(h)
    routed = active.routed[twin.packages["grounding"].experts]
    assert routed.rows_N.tolist() == [1, 1, 1, 1, 2, 2, 2]
    expected = twin.packages["grounding"].experts.router(h[SKILL]).softmax(-1)
    torch.testing.assert_close(routed.probs_NE, expected)
    assert len(active.routed[twin.understanding].rows_N) == VALID.sum()


@pytest.mark.parametrize("frozen_dtype", [torch.float32, torch.bfloat16])
def test_bf16_autocast(frozen_dtype: torch.dtype) -> None:
    twin, h = make_twin(), hidden()
    with routing(TASK, VALID):
        exact = twin(h)
        twin.understanding.to(frozen_dtype)
        with torch.autocast("cpu", torch.bfloat16):
            out = twin(h)
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in twin.packages.parameters())


def test_bad_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha_init: seen 1\.0, expected a value from 0 to below 1"):
        Alpha(1.0)
    with pytest.raises(ValueError, match=r"alpha_init: seen 0\.0"):
        Alpha(0.0, "sigmoid")
    with pytest.raises(ValueError, match="alpha_param: seen 'tanh', expected 'raw' or 'sigmoid'"):
        Alpha(0.5, "tanh")


@pytest.mark.parametrize("name", ["num_experts", "every", "top_k", "eval_top_k"])
def test_counts_begin_at_one(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name}: seen 0, expected at least 1$"):
        PackageOptions(**options)
