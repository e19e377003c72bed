"""Grounding experts of low rank: the shared products against the readable form, and against full copies."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, PhiConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi.modeling_phi import PhiMLP

from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.low_rank import LowRankExpert, LowRankMoE, experts_of, nearest, written_out
from ts_lightning.models.moe import MoE
from ts_lightning.models.routing import routing
from ts_lightning.models.twin import Alpha, Package, TwinExpert
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples

B, T, H, F_SIZE, RANK = 3, 5, 8, 20, 3
TASK = torch.tensor([0, 1, 1])
VALID = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
EVERY = (torch.ones(B), torch.ones(B, T))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "vision_layers": 1, "num_heads": 2}
GROUNDING = list(grounding_samples("train", 4, ("localization", "rec")))
UNDERSTANDING = list(understanding_samples("train", 4))


def make_mlp(form: str) -> nn.Module:
    if form == "phi":
        return PhiMLP(PhiConfig(hidden_size=H, intermediate_size=F_SIZE, num_attention_heads=2))
    sizes: dict[str, Any] = {"hidden_size": H, "intermediate_size": F_SIZE, "num_attention_heads": 2}
    return LlamaMLP(LlamaConfig(**sizes, mlp_bias=form == "biased"))


def make_twin(form: str, dense: bool, num: int = 2, top_k: int = 1, targets: tuple[str, ...] = ()) -> TwinExpert:
    """A layer in double precision whose differences are not zero."""
    torch.manual_seed(0)
    understanding = make_mlp(form) if dense else MoE.copies([make_mlp(form) for _ in range(4)], 4, 2)
    bases = experts_of(understanding)
    seeds = [e % len(bases) for e in range(num)]
    experts: Any = [LowRankExpert(bases[i], RANK, targets, i) for i in seeds]
    if num > 1:
        experts = LowRankMoE.of(
            nn.ModuleList(experts), bases[0].get_submodule("fc1" if form == "phi" else "up_proj"), top_k
        )
    else:
        experts = experts[0]
    twin = TwinExpert(understanding, nn.ModuleDict({"grounding": Package(experts, Alpha(0.3))})).double()
    for name, parameter in twin.named_parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=1.0 if "router" in name else 0.3)
    return twin


def hidden() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(B, T, H, dtype=torch.double)


def outcome(twin: TwinExpert, task: Tensor = TASK, valid: Tensor = VALID) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of everything that trains, by name."""
    h = hidden().requires_grad_()
    twin.zero_grad()
    with routing(task, valid):
        out = twin(h)
    torch.manual_seed(2)
    out.backward(torch.randn_like(out))
    gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    return {"output": out.detach(), "input": h.grad} | gradients


FIRST = {"phi": "fc1", "llama": "up_proj", "biased": "gate_proj"}
LAST = {"phi": "fc2", "llama": "down_proj", "biased": "down_proj"}


@pytest.mark.parametrize("form", ["phi", "llama", "biased"])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("num", "top_k"), [(1, 1), (2, 1), (2, 2), (5, 2)])
def test_shared_products_equal_the_readable_form(
    form: str, dense: bool, num: int, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for targets in ((), (FIRST[form],), (LAST[form],)):
        twin = make_twin(form, dense, num, top_k, targets)
        for rows in ((TASK, VALID), EVERY):
            shared = outcome(twin, *rows)
            with monkeypatch.context() as patch:
                patch.setattr("ts_lightning.models.twin.can_share", lambda understanding: False)
                readable = outcome(twin, *rows)
            assert shared.keys() == readable.keys()
            for name, value in readable.items():
                torch.testing.assert_close(shared[name], value, atol=1e-12, rtol=1e-10, msg=f"{targets} {name}")


def test_shared_products_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for dense in (True, False):
        twin = make_twin("llama", dense)
        whole = outcome(twin)
        with monkeypatch.context() as patch:
            patch.setattr("ts_lightning.models.experts.CACHED_ELEMENTS", 2 * F_SIZE)
            for name, value in outcome(twin).items():
                torch.testing.assert_close(value, whole[name], atol=1e-12, rtol=1e-10, msg=name)


@pytest.mark.parametrize("form", ["phi", "llama", "biased"])
@pytest.mark.parametrize("dense", [True, False])
def test_equal_to_full_copies_with_the_difference_written_out(form: str, dense: bool) -> None:
    """With D = B A: dL/dB = dL/dD A^T, dL/dA = B^T dL/dD."""
    twin = make_twin(form, dense)
    package: Any = twin.packages["grounding"]
    bases = experts_of(twin.understanding)
    copies = nn.ModuleList(written_out(e, bases[e.source])[0] for e in package.experts.experts)
    full = MoE(copies, copy.deepcopy(package.experts.router), 1)
    other = TwinExpert(twin.understanding, nn.ModuleDict({"grounding": Package(full, copy.deepcopy(package.alpha))}))
    ours, theirs = outcome(twin), outcome(other)
    for name in ("output", "input", "packages.grounding.alpha.value", "packages.grounding.experts.router.weight"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-10, rtol=1e-6, msg=name)
    for e, expert in enumerate(package.experts.experts):
        for layer, difference in expert.named_children():
            name = f"packages.grounding.experts.experts.{e}.{layer}"
            whole = theirs[f"{name}.weight"]
            torch.testing.assert_close(ours[f"{name}.b"], whole @ difference.a.T, atol=1e-10, rtol=1e-6, msg=name)
            torch.testing.assert_close(ours[f"{name}.a"], difference.b.T @ whole, atol=1e-10, rtol=1e-6, msg=name)
            if difference.bias is not None:
                torch.testing.assert_close(ours[f"{name}.bias"], theirs[f"{name}.bias"], atol=1e-10, rtol=1e-6)


def test_full_rank_reproduces_a_full_copy_and_a_lower_one_is_the_nearest() -> None:
    torch.manual_seed(0)
    base, full = make_mlp("phi"), make_mlp("phi")
    expert, errors = nearest(full, base, H)
    assert max(errors.values()) < 1e-6
    x = torch.randn(7, H)
    torch.testing.assert_close(expert(x, base), full(x), atol=1e-6, rtol=1e-5)
    again, _ = written_out(expert, base)
    torch.testing.assert_close(again(x), full(x), atol=1e-6, rtol=1e-5)
    for rank in (1, 3):
        near, errors = nearest(full, base, rank, ["fc1"])
        singular = torch.linalg.svdvals(full.fc1.weight.detach() - base.fc1.weight.detach())
        by_hand = (singular[rank:].square().sum() / singular.square().sum()).sqrt()  # Eckart and Young
        assert errors["fc1"] == pytest.approx(float(by_hand), rel=1e-5)
        assert errors["fc2"] == pytest.approx(1.0)
        assert not hasattr(near, "fc2")


def test_a_full_copy_in_16_bits_says_what_it_loses() -> None:
    """Between 1 and 2 bf16 has steps of 2^-7: of 1 + 2^-8 + 2^-10 it keeps 1 + 2^-7, of 1 + 2^-10 1."""
    base: Any = make_mlp("phi").to(torch.bfloat16)
    expert: Any = LowRankExpert(base, 1, ["fc1"])
    with torch.no_grad():
        base.fc1.weight.fill_(1.0)
        expert.fc1.a.fill_(1.0)
        expert.fc1.b.fill_(2**-10)
    copied, errors = written_out(expert, base)
    assert bool((copied.fc1.weight == 1).all())
    assert errors == {"fc1": pytest.approx(1.0)}  # all of the difference
    with torch.no_grad():
        expert.fc1.b.fill_(2**-8 + 2**-10)
    copied, errors = written_out(expert, base)
    assert bool((copied.fc1.weight == 1 + 2**-7).all())
    assert errors == {"fc1": pytest.approx((2**-7 - 2**-8 - 2**-10) / (2**-8 + 2**-10))}


def test_static_path_equals_the_shared_one() -> None:
    twin, h = make_twin("phi", dense=False), hidden()
    with torch.no_grad(), routing(TASK, VALID) as active:
        static = twin._static(twin.understanding(h), h, active)
        torch.testing.assert_close(static, twin(h), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("dense", [True, False])
def test_bf16_autocast_and_forced_alpha(dense: bool) -> None:
    twin = make_twin("phi", dense).float()
    h = hidden().float()
    with routing(TASK, VALID):
        exact = twin(h)
        with torch.autocast("cpu", torch.bfloat16):
            out = twin(h)
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in twin.packages.parameters())
    package: Any = twin.packages["grounding"]
    with torch.no_grad(), routing(TASK, VALID, alpha_override=0.0):
        vg = package.experts(h, twin.understanding)
        skill = VALID & (TASK == 1)[:, None]
        torch.testing.assert_close(twin(h)[skill], vg[skill], atol=1e-5, rtol=1e-5)


def backbone() -> TinyBackbone:
    return TinyBackbone(pretrained=None, **SIZES)


def shaken(vlm: TwinExpertVLM) -> TwinExpertVLM:
    torch.manual_seed(1)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vlm


def batch(vlm: TwinExpertVLM, samples: list) -> dict[str, Any]:
    return collate([vlm.encode(sample) for sample in samples], vlm.pad_id)


def test_a_vlm_of_low_rank_keeps_every_promise(tmp_path: Path) -> None:
    """Starts as its base says, retains bitwise, trains everything, travels, and is a GRPO reference."""
    vlm = TwinExpertVLM(backbone(), every=1, expert_rank=4)
    rows, asked = batch(vlm, GROUNDING), batch(vlm, UNDERSTANDING)
    full = TwinExpertVLM(backbone(), every=1)
    trained = [sum(p.numel() for p in v.parameters() if p.requires_grad) for v in (vlm, full)]
    assert trained[0] < 0.3 * trained[1]
    vlm.train()(batch(vlm, GROUNDING + UNDERSTANDING))["logits"].square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in vlm.parameters())
    shaken(vlm).eval()
    with torch.no_grad():
        understood = vlm(asked)["logits"]
        mixed = vlm(batch(vlm, GROUNDING + UNDERSTANDING))
        alone, row_N = vlm(rows)["logits"], mixed["positions"][0]
        torch.testing.assert_close(mixed["logits"][row_N < 4], alone, rtol=1e-5, atol=1e-5)
        vlm.save_pretrained(tmp_path)
        again = TwinExpertVLM.from_pretrained(tmp_path, backbone())
        torch.testing.assert_close(again(rows)["logits"], alone, rtol=1e-6, atol=1e-6)
        vlm.keep_copy("reference")
        shaken(vlm)
        torch.testing.assert_close(vlm(rows, package="reference")["logits"], alone, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(vlm(rows)["logits"], alone, atol=1e-3)
        vlm.remove_packages()  # bitwise: a batch of understanding runs the frozen modules and nothing else
        assert torch.equal(understood, PlainVLM(vlm.backbone, train=()).eval()(asked)["logits"])


@pytest.mark.parametrize(
    "options", [{}, {"num_experts": 1}, {"alpha_scope": "layer", "every": 2, "seed_experts": [3, 1]}]
)
@torch.no_grad()
def test_a_package_changes_its_form(options: dict[str, Any]) -> None:
    vlm = shaken(TwinExpertVLM(backbone(), **{"every": 1, **options})).eval()
    rows = batch(vlm, GROUNDING)
    expected = vlm(rows)["logits"]
    low = {rank: max(copy.deepcopy(vlm).to_rank(rank).values()) for rank in (4, 16, 32)}
    assert low[4] > low[16] > 1e-3
    assert low[32] < 1e-5
    errors = vlm.to_rank(32)
    assert max(errors.values()) < 1e-5
    torch.testing.assert_close(vlm(rows)["logits"], expected, atol=1e-4, rtol=1e-4)
    assert vlm.options["grounding"].expert_rank == 32
    assert max(vlm.to_rank(None).values()) < 1e-6
    assert vlm.to_rank(None) == {}  # they are full copies
    torch.testing.assert_close(vlm(rows)["logits"], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rank", [4, None])
def test_a_package_over_a_base_in_bf16_is_saved_as_it_is_computed(rank: int | None, tmp_path: Path) -> None:
    """Half the bytes and the same bits; routers and alpha, which are computed in fp32, stay so."""
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 28, "patch_size": 14, "projection_dim": 32}
    text = {"vocab_size": 1500, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = {"model_type": "llava", "vision_config": tower | {"model_type": "clip_vision_model"},
              "text_config": text | {"model_type": "llama", "num_attention_heads": 2}}  # fmt: skip
    vlm = TwinExpertVLM(LlavaBackbone(config=config, dtype="bfloat16"), expert_rank=rank)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as it trains
    shaken(vlm).eval().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "package.safetensors")
    kept = {name for name, tensor in saved.items() if tensor.dtype == torch.float32}
    assert kept == {"alpha", "layers.0.experts.router.weight"}
    again = TwinExpertVLM.from_pretrained(tmp_path, LlavaBackbone(config=config, dtype="bfloat16"))
    rows = batch(vlm, GROUNDING)
    logits = vlm(rows)["logits"]
    assert torch.equal(again(rows)["logits"], logits)  # bitwise: the same products, memory that torch aligns alike


def test_refusals_name_what_is_wrong() -> None:
    for options, message in (
        ({"expert_rank": 0}, "expert_rank: seen 0, expected 1 to 32"),
        ({"expert_rank": 33}, "expert_rank: seen 33, expected 1 to 32"),
        ({"expert_rank": 2, "expert_targets": ["gate"]}, "expert_targets: seen 'gate', expected some of fc1, fc2"),
        ({"expert_targets": ["fc1"]}, r"expert_targets: seen \['fc1'\] without expert_rank"),
    ):
        with pytest.raises(ValueError, match=message):
            TwinExpertVLM(backbone(), **options)
