"""The learning table's configurations, refusal and figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import grpo_settings
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


def test_settings_go_on_where_the_last_call_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without time left adds no row; a later one has one for each run, and repeats none."""
    given: list[dict[str, Any]] = []

    def fit(config: Path, root: Path, options: list[str], steps: int) -> dict[str, Any]:
        made = json.loads(config.read_text())
        given.append(made)
        return {"steps": min(steps, 400 * sum(m["trainer"]["default_root_dir"] == str(root) for m in given))}

    monkeypatch.setattr(grpo_settings, "fit_once", fit)
    monkeypatch.setattr(grpo_settings, "answers", lambda *args: [1.0, 0.0, 0.0, 0.0])
    runs, rows = list(grpo_settings.wanted(["DAPO"], [3])), tmp_path / "rows.jsonl"
    assert len(runs) == 5
    places = (Path("s"), tmp_path / "out", runs)
    later = grpo_settings.time.monotonic() + 1000
    assert not grpo_settings.go_on(*places, later, rows)  # 400 of the base's 800 steps
    assert not grpo_settings.go_on(*places, 0.0, rows)  # all of them, and the time is over
    assert not rows.exists()
    assert grpo_settings.go_on(*places, later, rows)
    assert grpo_settings.go_on(*places, later, rows)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["acc50"] for row in found] == [0.25] * 5
    assert {(row.get("thought"), row.get("iterations")) for row in found[1:]} == {
        (False, 1), (False, 2), (True, 1), (True, 2)
    }  # fmt: skip
    assert len(given) == 2 + 5
    assert given[2]["model"]["init_args"]["vlm"]["init_args"]["init_from"].endswith("base/checkpoints/last.ckpt")
    assert given[3]["model"]["init_args"]["vlm"]["init_args"]["init_from"].endswith("run=sft/checkpoints/last.ckpt")
    assert given[3]["model"]["init_args"]["algorithm"]["class_path"] == "ts_lightning.losses.DAPO"
