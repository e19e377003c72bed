"""The benchmarks' own arithmetic, and the twin layer's memory, which needs no clock."""

import json

import pytest
import torch

from tools.bench import gradient_noise, grouped, harness, loader, packing, sft, twin


def test_twin_keeps_at_most_065_of_what_the_naive_loop_keeps() -> None:
    case = twin.measure((64, 256, 256), torch.float32, "cpu", rounds=1)
    assert case["correct"]
    assert case["max_relative_error"] < 1e-5
    assert case["saved_bytes_ratio"] <= 0.65
    assert set(case["ratios"]) >= {"naive_loop", "grouped_mm"}


def test_twin_beside_its_peers_on_rows_of_both_kinds_with_padding() -> None:
    case = twin.measure((32, 64, 256), torch.float32, "cpu", rounds=1, mixed=True)
    assert case["correct"]
    assert twin.measure((32, 64, 256), torch.bfloat16, "cpu", rounds=1, mixed=True)["correct"]


def test_sft_beside_transformers_trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"HIDDEN": 32, "HEADS": 2, "LAYERS": 1, "VOCABULARY": 2048, "LENGTHS": (120, 100)}.items():
        monkeypatch.setattr(sft, name, value)
    assert sft.main(rounds=1) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["max_relative_error"] < 1e-5
    assert said["ratios"].keys() == said["spread"].keys() >= {"plain_twin", "transformers_trainer"}


def test_grouped_attention_beside_copied_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grouped, "PROMPTS", {"1x20": (1, 20)})
    assert grouped.main(rounds=1) == grouped.main(rounds=1, dtype="bfloat16") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratios"].keys() == {
        "Qwen2-VL-2B/1x20",
        "Qwen2-VL-7B/1x20",
    }
    monkeypatch.setattr(grouped, "attend", lambda *given, **named: (torch.zeros(1, 8, 12, 128), None))
    assert grouped.main(rounds=1) == 1


def test_saved_bytes_counts_each_storage_once_and_no_weights() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(2, 4, requires_grad=True)
    # x @ weight keeps both; (y * y) keeps y, two by four floats, once
    assert harness.saved_bytes(lambda: (x @ weight).square().sum(), [weight]) == (2 * 4 + 2 * 4) * 4


def test_ratio_is_the_median_of_the_rounds() -> None:
    assert harness.ratio({"ours": [1.0, 4.0, 9.0], "peer": [2.0, 2.0, 3.0]}, "ours", "peer") == 2.0
    seconds = harness.interleave({"a": lambda: None, "b": lambda: None}, rounds=3)
    assert [len(seconds[name]) for name in "ab"] == [3, 3]


def test_report_is_one_json_line_and_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.report("x", True, ratios={"peer": 0.5}) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "x", "ratios": {"peer": 0.5}, "correct": True}
    assert harness.report("x", False) == 1


def test_loader_peer_is_the_normalised_picture() -> None:
    (picture,) = loader.make_pictures(1)
    levels = loader.peer(picture) * torch.tensor(loader.STD).view(3, 1, 1) + torch.tensor(loader.MEAN).view(3, 1, 1)
    assert (levels * 255 - loader.ours(picture)).abs().max() <= 1.01


def test_loader_makes_what_transformers_makes() -> None:
    (picture,) = loader.make_pictures(1)
    for name, make in loader.processors().items():
        ours = loader.our_patches(picture) if name.startswith("patches") else loader.ours(picture)
        apart = (loader.levels_of(make(picture)) - ours).abs()
        assert (apart > 1.01).double().mean() <= 1e-4, name


def test_packing_checks_before_it_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"HIDDEN": 32, "HEADS": 2, "SIDE": 56, "QUESTIONS": 4, "TEXT": (31, 40)}.items():
        monkeypatch.setattr(packing, name, value)
    assert packing.main(rounds=1, pictures=2) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["max_relative_error"] < 1e-5
    assert said["positions"]["packed"] < said["positions"]["separate"]


def test_low_rank_keeps_half_of_what_full_copies_keep() -> None:
    case = twin.low_rank((64, 256, 256), torch.float32, "cpu", rounds=1, rank=4)
    assert case["dense"]["saved_bytes_ratio"] <= 0.6
    assert case["moe"]["saved_bytes_ratio"] <= 0.85


def test_the_variance_of_gradients_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([[1.0, 0.0], [3.0, 2.0], [2.0, 1.0]])
    vlm = torch.nn.Linear(2, 1, bias=False)

    def backward(vlm: torch.nn.Linear, step: None) -> None:
        vlm.weight.grad = torch.tensor([next(found)])

    monkeypatch.setattr(gradient_noise, "backward", backward)
    spread, length = gradient_noise.variance(vlm, iter([None] * 3), 3)  # type: ignore[arg-type]
    assert spread == pytest.approx(2.0)  # of (1, 2, 3) and (0, 1, 2)
    assert length == pytest.approx(4.0 + 1.0 - 2.0 / 3)
