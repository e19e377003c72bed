"""The full-size benchmark's path, with a small model on the CPU; it says so where there is no CUDA device."""

import json

import pytest
import torch

from tests.unit.models.test_backbones import MAKERS
from tools.bench import full_size, full_step, packing, sft
from tools.bench.geometry import MODELS, memory, rows
from ts_lightning.models.flops import step_flops
from ts_lightning.models.packing import pack_questions


def last_line(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run at full size")
def test_without_cuda_it_says_so(capsys: pytest.CaptureFixture) -> None:
    for run in (full_size.main, sft.main, packing.main):
        assert run(1, model="Qwen2-VL-7B") == 0
        assert "seen no CUDA device" in last_line(capsys)["skipped"]


@pytest.mark.parametrize("name", ["moe_llava", "qwen2_vl"])
def test_it_trains_and_generates(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(full_size, "backbone", lambda model: MAKERS[name]())
    for setting, value in {"STEPS": 4, "NEW_TOKENS": 3, "ROWS": 2}.items():
        monkeypatch.setattr(full_size, setting, value)
    assert full_size.main(1, name, device="cpu") == 0
    figures = last_line(capsys)
    assert figures["step_s"] > 0
    assert figures["new_tokens_per_s"] > 0


@pytest.mark.parametrize("name", ["moe_llava", "qwen2_vl"])
def test_steps_beside_their_peers(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    monkeypatch.setattr(full_step, "backbone", lambda model: MAKERS[name]())
    monkeypatch.setattr(full_step, "step_flops", lambda vlm: made.append(vlm) or step_flops(vlm))
    assert sft.main(1, name, "cpu") == 0
    assert last_line(capsys)["ratios"].keys() == {"plain_twin"}
    assert packing.main(1, 2, name, "cpu") == 0
    said = last_line(capsys)
    assert said["ratios"].keys() == {"separate_rows", "joined"}
    asked = [row for picture in range(2) for row in full_step.rows_about(made[0], picture, packing.QUESTIONS)]
    separate, packed = (
        full_step.batch_of(made[0], each, "cpu")["counts"]
        for each in (asked, pack_questions(asked, made[0].backbone.image_token_id))
    )
    lengths = [len(row["input_ids"]) for row in asked]
    assert separate["tokens"] == sum(lengths) > packed["tokens"]
    assert separate["pairs"] == sum(n * (n + 1) // 2 for n in lengths) > packed["pairs"] > 0
    assert separate["answers"] == packed["answers"] == sum(int((row["step_ids"] >= 0).sum()) for row in asked)
    monkeypatch.setattr(full_step, "TOLERANCE", {"loss": -1.0})
    assert sft.main(1, name, "cpu") == 1


def test_trainable_parameters_are_the_papers() -> None:
    """Table 7: 0.8, 1.6, 3.3 billion; 16 layers, 52,441,600 parameters an expert, 2560 a router's row, alpha."""
    counted = {(row.model, row.num_experts): row for row in rows()}
    expert = 2560 * 10240 + 10240 + 10240 * 2560 + 2560
    for num_experts in (1, 2, 4):
        router = 2560 * num_experts if num_experts > 1 else 0
        row = counted[MODELS[0], num_experts]
        assert row.twin_layers == 16
        assert row.trainable == 16 * (num_experts * expert + router) + 1
        assert row.active[1] == 16 * (expert + router) + 1
    two = counted[MODELS[0], 2]
    assert two.active[2] == two.trainable
    plan = memory(two, gpus=4)
    assert plan["DDP"] == pytest.approx((2 * two.base + 16 * two.trainable) / 2**30)
    assert plan["FSDP2"] < plan["ZeRO-2"] < plan["DDP"]
    assert counted["Qwen2-VL-7B", 2].twin_layers == 14
