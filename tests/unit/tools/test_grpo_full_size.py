"""The full-size GRPO benchmark's path with small models on the CPU, and its floors."""

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.models.test_backbones import llava_config, moe_public, qwen_config
from tools.bench import floors, grpo_case, grpo_full_size
from ts_lightning.models import MoE
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone

MAKERS: dict[str, Any] = {
    "llava": lambda dtype="float32": LlavaBackbone(config=llava_config(), dtype=dtype),
    "moe_llava": lambda dtype="float32": MoELlavaBackbone(config=moe_public(), dtype=dtype),
    "qwen2_vl": lambda dtype="float32": QwenVLBackbone(config=qwen_config(), dtype=dtype),
}
ADDMM_ = {torch.ops.aten.addmm_: lambda out, a, b, *args, **kwargs: 2 * a[0] * a[1] * b[1]}  # the counter lacks it


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for setting, value in {"GROUP": 3, "PROMPT": 20, "COMPLETION": 4}.items():
        monkeypatch.setattr(grpo_full_size, setting, value)
    monkeypatch.setattr(grpo_full_size, "PROBES", {"copied": 1000, "side": 16, "products": 2})
    return monkeypatch


def last_line(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run at full size")
def test_without_cuda_it_says_so(capsys: pytest.CaptureFixture) -> None:
    assert grpo_full_size.main(1, "Qwen2-VL-7B") == 0
    said = last_line(capsys)
    assert "seen no CUDA device" in said["skipped"]
    assert said["floors"]["token_ms"] == pytest.approx(1000 * said["floors"]["decode_gb"] / 4300, abs=0.01)
    assert 25 < said["floors"]["decode_gb"] < 26  # 28 layers in bf16, 14 of them with two more experts, and the head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKERS)
def test_full_size_path(name: str, dtype: str, tiny: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    tiny.setattr(grpo_full_size, "backbone", lambda model: MAKERS[name](dtype))
    assert grpo_full_size.main(1, name, device="cpu") == 0
    figures = last_line(capsys)
    assert figures["correct"]
    assert set(figures["ratios"]) == {"update/repeated", "rollout/repeated"}
    assert min(*figures["ratios"].values(), figures["floor_ratio"]["update"]) > 0
    assert "token" in figures["floor_ratio"]  # a difference of two times that are mostly noise here
    assert figures["dtype"] == dtype


def test_full_size_times_nothing_that_is_wrong(tiny: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    tiny.setattr(grpo_full_size, "backbone", lambda model: MAKERS["qwen2_vl"]())
    forward = grpo_case.group_log_probs
    tiny.setattr(
        grpo_case, "group_log_probs", lambda vlm, batch, tokens, **options: forward(vlm, batch, [tokens[0][::-1]])
    )
    assert grpo_full_size.main(1, "qwen2_vl", device="cpu") == 1
    assert last_line(capsys)["ratios"] == {}


def test_linear_flops_are_the_counted_ones(tiny: pytest.MonkeyPatch) -> None:
    tiny.setattr(grpo_full_size, "backbone", lambda model: MAKERS["moe_llava"]())
    case = grpo_full_size.make_case("moe_llava", "cpu")
    with FlopCounterMode(display=False, custom_mapping=ADDMM_) as counter:
        case.update(True)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counted.items() if "attention" not in str(op))
    tokens, scored = 20 + 3 * 4, 3 * 4
    # behind no trained layer, the skill's second product has an input gradient all the same: of its first's weights
    assert products == floors.linear_flops(case.vlm, tokens, scored) + 2 * 32 * 48 * tokens


def test_attention_flops_and_decode_bytes_by_hand(tiny: pytest.MonkeyPatch) -> None:
    tiny.setattr(grpo_full_size, "backbone", lambda model: MAKERS["moe_llava"]())
    vlm = grpo_full_size.make_case("moe_llava", "cpu").vlm
    pairs = 20 * 21 // 2 + 3 * (4 * 20 + 4 * 5 // 2)
    # two products forward, four backward; four layers, the first of them without backward
    assert floors.attention_flops(vlm, 20, 3, 4) == 4 * pairs * 32 * (4 + 2 * 3)
    expert, width = 32 * 48 + 48 + 48 * 32 + 32, 32
    attention = 4 * (width * width + width)
    layers = 4 * (attention + 2 * width) + 2 * expert  # two dense MLPs
    layers += 2 * (4 * expert + 4 * width + 2 * expert + 2 * width) + 1  # two twins: experts, routers; one alpha
    assert floors.decode_bytes(vlm) == 4 * (layers + 2048 * width)
    assert sum(isinstance(module, MoE) for module in vlm.modules()) == 4
