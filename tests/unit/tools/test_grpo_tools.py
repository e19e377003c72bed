"""The learning table's configurations, refusal and figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import grpo_toy_study as grpo_toy

CONFIGS = Path(__file__).parents[3] / "configs/fit"


def test_settings_of_the_runs(tmp_path: Path) -> None:
    given = {"init_from": "x.ckpt", "minutes": 10.6, "no_image": True}
    made = grpo_toy.settings(CONFIGS / "toy_mirg_grpo.yaml", Path("here"), tmp_path, 3, given)
    assert made["trainer"]["max_time"] == {"seconds": 616}
    assert made["model"]["init_args"]["vlm"]["init_args"]["init_from"] == "x.ckpt"
    assert made["data"]["init_args"]["train"]["shards"] == "here/mirg_rl-*.tar"
    assert made["data"]["init_args"]["seed"] == made["seed_everything"] == 3
    (rollout,) = [c for c in made["trainer"]["callbacks"] if "Rollout" in c["class_path"]]
    assert set(rollout["init_args"]["rewards"]) == {"format", "object"}
    assert rollout["init_args"]["seed"] == 3
    options = {"algorithm": "DAPO", "iterations": 2, "thought": True}
    other = grpo_toy.settings(CONFIGS / "toy_mirg_grpo.yaml", Path("here"), tmp_path, 3, options)
    model = other["model"]["init_args"]
    assert (model["algorithm"]["class_path"], model["num_iterations"]) == ("ts_lightning.losses.DAPO", 2)
    callback = next(c for c in other["trainer"]["callbacks"] if c["class_path"].endswith("RolloutCallback"))
    assert callback["init_args"]["rewards"].keys() == {"format", "image", "object", "thought"}
    first = grpo_toy.settings(CONFIGS / "toy_mirg_sft.yaml", Path("here"), tmp_path, 0, {"max_steps": 7})
    more = grpo_toy.settings(CONFIGS / "toy_mirg_sft.yaml", Path("here"), tmp_path, 0, given)
    assert first["trainer"]["max_steps"] == 7
    assert "max_time" not in first["trainer"]
    assert first["model"]["init_args"]["vlm"]["init_args"]["init_from"] is None
    rates = [made["model"]["init_args"]["optimizer"]["init_args"]["lr"] for made in (first, more)]
    assert rates[1] == rates[0] / 4


def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: dict[str, float]) -> str:
    def fit(config: Path, shards: Path, root: Path, seed: int, given: dict[str, Any]) -> dict[str, Any]:
        calls.append((root.name, given))
        return {"checkpoint": str(root), "seconds": 70.0 if root.name == "sft" else 100.0, "steps": 5}

    def answers(checkpoint: str, shards: Path, root: Path, questions: int) -> list[float]:
        return [float(i < shares[root.name] * questions) for i in range(questions)]

    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(grpo_toy, "fit", fit)
    monkeypatch.setattr(grpo_toy, "answers", answers)
    monkeypatch.setattr(grpo_toy, "certify_checkpoint", lambda *a, **k: {"logits": {"bitwise_equal": True}})
    made = grpo_toy.learning_table(CONFIGS, Path("s"), tmp_path, [0, 1], 10, 350, 200)
    minutes = {name: given.get("minutes") for name, given in calls}
    assert minutes["base"] is minutes["sft"] is None
    assert minutes["grpo"] == minutes["grpo_without_image"] == minutes["more_sft"] == 10
    assert [given.get("max_steps") for name, given in calls if name == "more_sft"] == [7, 7]  # 100 s at 14 s a step
    return made


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"sft": 0.5, "more_sft": 0.52, "grpo": 0.6, "grpo_without_image": 0.5}
    made = table(tmp_path, monkeypatch, shares)
    assert "| 0 | 0.500 | 0.520 | 0.600 | +8.0 (" in made
    assert "-2.0 (" in made
    assert made.endswith("in every run: True")
    result = json.loads((tmp_path / "grpo.json").read_text())
    assert result["all_seeds"]["grpo"]["mean"] == pytest.approx(0.08)
    assert result["all_seeds"]["grpo"]["low"] > 0


def test_a_start_outside_of_the_range_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"seed 0: seen SFT's Acc@0.5 0.100, expected 0.2 to 0.7"):
        table(tmp_path, monkeypatch, {"sft": 0.1})
