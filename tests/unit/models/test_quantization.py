"""A quantised frozen part: codes by hand, layers that train beside it, retention, packages, the certificate.

Bitwise: codes, and scales that are a largest value, which nothing rounds.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.quantization import QuantizedLinear, nf4_codes, nf4_fast, nf4_levels, nf4_values
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples
from ts_lightning.reports.certificate import certify_on
from ts_lightning.runs.export import export
from ts_lightning.runs.load import load
from ts_lightning.training import StepwiseSFT
from ts_lightning.vllm_plugin.folders import read_package as vllm_package

needs_library = pytest.mark.skipif(
    not find_spec("bitsandbytes"), reason="bitsandbytes, the extra quantization, missing"
)
KINDS = ["int8", "nf4"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_layers": 2,
    "vision_layers": 1,
    "num_heads": 2,
}
GROUNDING = list(grounding_samples("train", 3, ("localization", "rec")))
UNDERSTANDING = list(understanding_samples("train", 3))


def backbone() -> TinyBackbone:
    return TinyBackbone(pretrained=None, **SIZES)


def batch(vlm: Any, samples: list) -> dict[str, Any]:
    return collate([vlm.encode(sample) for sample in samples], vlm.pad_id)


def shaken(vlm: Any) -> Any:
    torch.manual_seed(1)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return vlm


def test_int8_codes_by_hand() -> None:
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, -2.54]])
    held = QuantizedLinear(linear, "int8")
    assert held.weight.tolist() == [[127, -50, 0], [0, 0, -127]]  # steps of 0.01 and 0.02
    torch.testing.assert_close(held.dense(torch.float32), torch.tensor([[1.27, -0.5, 0.0], [0.0, 0.0, -2.54]]))
    x = torch.randn(5, 3)
    torch.testing.assert_close(held(x), x @ held.dense(torch.float32).T + linear.bias)


def test_nf4_codes_are_the_nearest_of_sixteen_levels() -> None:
    """Levels are quantiles of a normal distribution, scaled by the largest of a block of 64."""
    torch.manual_seed(0)
    weight, levels = torch.randn(32, 128), nf4_levels()
    assert (len(levels), levels[0], levels[7], levels[15]) == (16, -1, 0, 1)
    assert levels[8:11].tolist() == pytest.approx([0.0795803, 0.1609302, 0.2461123], abs=1e-6)  # of the paper's code
    codes, scale = nf4_codes(weight)
    assert codes.nbytes == 32 * 128 // 2
    blocks = weight.view(-1, 64) / weight.view(-1, 64).abs().amax(1, keepdim=True)
    nearest = levels[(blocks[..., None] - levels).abs().argmin(-1)] * scale[:, None]
    torch.testing.assert_close(nf4_values(codes, scale, torch.float32), nearest.flatten())


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_makes_and_reads_the_same_codes(dtype: torch.dtype) -> None:
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(32, 128)
    codes, scale = nf4_codes(weight)
    theirs, state = quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=False)
    assert torch.equal(theirs.flatten(), codes)
    assert torch.equal(state.absmax, scale)
    seen = nf4_fast(codes, scale, dtype).flatten()
    torch.testing.assert_close(seen, nf4_values(codes, scale, dtype), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_twin_experts_over_a_quantised_base(kind: str, tmp_path: Path) -> None:
    """Shared products equal the readable form over the codes; what trains gets gradients; a package comes back."""
    vlm = shaken(TwinExpertVLM(backbone(), every=1, expert_rank=4, quantization=kind))
    held = [m for m in vlm.backbone.layers.modules() if isinstance(m, QuantizedLinear)]
    assert len(held) == 2 * 4 + 4 * 2 + 2  # four of attention in each layer, four experts, one MLP
    rows, asked = batch(vlm, GROUNDING), batch(vlm, UNDERSTANDING)

    def outcome() -> dict[str, torch.Tensor]:
        vlm.zero_grad()
        logits = vlm(rows)["logits"]
        logits.square().mean().backward()
        return {"logits": logits.detach()} | {n: p.grad for n, p in vlm.named_parameters() if p.requires_grad}

    vlm.eval()
    shared = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ts_lightning.models.twin.can_share", lambda understanding: False)
        readable = outcome()
    for name, value in readable.items():
        torch.testing.assert_close(shared[name], value, atol=1e-5, rtol=1e-4, msg=name)
    with torch.no_grad():
        exact = TwinExpertVLM(backbone(), every=1, expert_rank=4)
        error = PlainVLM(backbone(), train=())(asked)["logits"] - vlm(asked)["logits"]
        assert 1e-5 < error.abs().max() < 0.3
        module = StepwiseSFT(vlm)
        export(module, "package", tmp_path / "package")
        again = load(tmp_path / "package").vlm
        torch.testing.assert_close(again(rows)["logits"], vlm(rows)["logits"], rtol=1e-6, atol=1e-6)
        assert again.identity() == vlm.identity() == {**exact.identity(), "quantization": kind}
    with pytest.raises(ValueError, match=f"trained on a base of quantization {kind}, expected None"):
        TwinExpertVLM(backbone(), every=1).install(tmp_path / "package", "other")
    with pytest.raises(ValueError, match=f"seen one over a base in {kind}, expected one over a base that is not"):
        vllm_package(tmp_path / "package")
    with pytest.raises(ValueError, match=f"export: seen a base in {kind} for a standalone model"):
        export(module, "standalone", tmp_path / "standalone")
    with pytest.raises(ValueError, match=f"rank: seen experts over a base in {kind}"):
        vlm.to_rank(2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_speaks_of_the_quantised_base(kind: str) -> None:
    vlm = shaken(TwinExpertVLM(backbone(), every=1, expert_rank=4, quantization=kind))
    found = certify_on(vlm, UNDERSTANDING, max_new_tokens=4)
    assert found["passed"]
    assert found["logits"]["bitwise_equal"]
    assert found["quantization"]["kind"] == kind
    assert found["quantization"]["max_abs_diff"] > 1e-5
    assert any(name.endswith("scale") for name in found["sha256"])  # scales are compared too
    held: Any = next(m for m in vlm.backbone.layers.modules() if isinstance(m, QuantizedLinear))
    held.weight.data[0] += 1
    assert not certify_on(vlm, UNDERSTANDING, max_new_tokens=4)["passed"]


@pytest.mark.parametrize("kind", KINDS)
def test_lora_over_a_quantised_base_trains(kind: str) -> None:
    vlm = LoRAVLM(backbone(), 2, quantization=kind)
    vlm.train()(batch(vlm, GROUNDING))["logits"].square().mean().backward()
    gradients = [p.grad for p in vlm.parameters() if p.requires_grad]
    assert all(g is not None for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients if g is not None)


@needs_library
def test_the_optimizer_of_8_bits_learns() -> None:
    from bitsandbytes.optim import AdamW8bit

    vlm = TwinExpertVLM(backbone(), every=1, expert_rank=64, quantization="nf4")
    optimizer = AdamW8bit([p for p in vlm.parameters() if p.requires_grad], lr=1e-2)
    rows, losses = batch(vlm, GROUNDING), []
    for _ in range(8):
        output = vlm(rows)
        loss = nn.functional.cross_entropy(output["logits"], output["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())


def test_refusals_name_what_is_wrong() -> None:
    for make, message in (
        (
            lambda: TwinExpertVLM(backbone(), expert_rank=4, quantization="int4"),
            "quantization: seen 'int4', expected one",
        ),
        (lambda: TwinExpertVLM(backbone(), quantization="int8"), "quantization: seen 'int8' for full copies"),
        (lambda: PlainVLM(backbone(), quantization="int8"), "quantization: seen 'int8' for a base that trains"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
