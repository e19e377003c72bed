"""A package of one's own, allowed by the command line alone, for configurations and checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse._common import parsing_settings

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.runs.class_paths import EXTRA_VARIABLE

MODULE = "from ts_lightning.training import SFT\nclass Mine(SFT):\n    pass\n"


@pytest.fixture(autouse=True)
def _forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test allows and imports is unknown to the next."""
    (tmp_path / "own_package.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(EXTRA_VARIABLE, raising=False)
    for setting in ("import_path_verdicts", "import_paths_enforced", "instantiate_subclass_spec_in_any"):
        monkeypatch.setitem(parsing_settings, setting, parsing_settings[setting])
    monkeypatch.delitem(sys.modules, "own_package", raising=False)


@pytest.fixture
def given(tmp_path: Path, shards: str) -> dict[str, Any]:
    config = tiny.config(shards, tmp_path / "run")
    config["model"]["class_path"] = "own_package.Mine"
    config["trainer"]["max_steps"] = 1
    return config


def refused(capsys: pytest.CaptureFixture, *args: str) -> str:
    capsys.readouterr()
    assert main(list(args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own_package" not in sys.modules
    return line


def test_a_configuration_cannot_allow_classes(
    given: dict[str, Any], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = "in a configuration, expected --allow_classes on the command line"
    good = tiny.config(shards, tmp_path / "good")
    for number, value in enumerate(("own_package", ["own_package"])):
        path = tiny.save({**good, "allow_classes": value}, tmp_path / f"{number}.yaml")
        message = refused(capsys, "fit", "-c", path)
        assert f"allow_classes: seen {value!r}" in message
        assert expected in message
    late = tiny.save({**given, "allow_classes": "own_package"}, tmp_path / "late.yaml")
    assert "own_package.Mine" in refused(capsys, "fit", "-c", late)


def test_the_flag_allows_a_configuration(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tiny.save(given, tmp_path / "given.yaml")
    assert "--allow_classes NAME" in refused(capsys, "fit", "-c", path)
    assert main(["fit", "-c", path, "--allow_classes", "own_package"]) == 0
    assert "allow_classes" not in (tmp_path / "run/config.yaml").read_text()
    assert EXTRA_VARIABLE not in os.environ


def test_the_flag_allows_a_checkpoint(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parsing_settings["import_path_verdicts"]
    assert main(["fit", "-c", tiny.save(given, tmp_path / "given.yaml"), "--allow_classes", "own_package"]) == 0
    monkeypatch.setitem(parsing_settings, "import_path_verdicts", before)
    monkeypatch.delitem(sys.modules, "own_package")
    (checkpoint,) = (tmp_path / "run/checkpoints").rglob("*.ckpt")
    args = ["validate", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path / "out")]
    assert "own_package.Mine" in refused(capsys, *args)
    assert main([*args, "--allow_classes=own_package"]) == 0


LOSS = """
from dataclasses import dataclass
from ts_lightning.losses import RowLoss, answer_nll, stepwise_loss

@dataclass
class Scaled(RowLoss):
    factor: float = 1.0
    def __call__(self, output, batch):
        nll_BT = answer_nll(output, batch["step_ids"])
        return {"loss": self.factor * stepwise_loss(nll_BT, batch["step_ids"], "sum")}
"""


def test_a_configuration_names_a_loss_of_ones_own(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "own_package.py").write_text(LOSS)
    first = {}
    for factor in (1.0, 3.0):
        loss = {"class_path": "own_package.Scaled", "init_args": {"factor": factor}}
        given["model"] = {
            "class_path": "ts_lightning.training.SFT",
            "init_args": {"vlm": tiny.PLAIN, "loss": loss, "max_new_tokens": 4},
        }
        given["trainer"]["default_root_dir"] = str(tmp_path / f"run{factor}")
        path = tiny.save(given, tmp_path / "own.yaml")
        assert main(["fit", "--allow_classes", "own_package", "-c", path]) == 0
        lines = (tmp_path / f"run{factor}" / "metrics.jsonl").read_text().splitlines()
        first[factor] = next(row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row)
    assert first[3.0] == pytest.approx(3 * first[1.0], rel=1e-5)


def test_a_file_beside_the_configuration_that_python_does_not_find(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a reward and of an algorithm alike; the command itself does not have its folder on the path."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "my_own.py").write_text("def short(completion, sample):\n    return -len(completion.text)\n")
    config = tiny.config(shards, tmp_path / "run")
    config["model"]["class_path"] = "ts_lightning.training.GRPO"
    callback = {"class_path": "ts_lightning.rl.RolloutCallback", "init_args": {"rewards": {"mine": "my_own.short"}}}
    config["trainer"]["callbacks"] = [callback]
    command = [str(Path(sys.executable).parent / "ts-lightning"), "fit", "-c", tiny.save(config, tmp_path / "a.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--allow_classes", "my_own"], cwd=folder, env=environment, capture_output=True, text=True
    )
    found = "No module named 'my_own': install it, or set PYTHONPATH=. where it is a file of this folder"
    error = f"ts-lightning: error: rewards.mine: seen 'my_own.short' ({found}), expected a function"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, error)
    config["model"]["init_args"]["algorithm"] = {"class_path": "my_own.Algorithm"}
    line = refused(capsys, "fit", "-c", tiny.save(config, tmp_path / "b.yaml"), "--allow_classes", "my_own")
    assert line.endswith(f"algorithm: Problem with given class_path 'my_own.Algorithm': {found}")


def test_a_fault_in_a_list_ends_without_what_the_list_is_not(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config(shards, tmp_path / "run")
    config["trainer"]["callbacks"] = [{"class_path": "ts_lightning.rl.RolloutCallback", "init_args": {"refills": -1}}]
    assert refused(capsys, "fit", "-c", tiny.save(config, tmp_path / "a.yaml")).endswith("expected at least 0")
    config["trainer"]["callbacks"] = []
    config["model"]["init_args"]["vlm"] = 5
    line = refused(capsys, "fit", "-c", tiny.save(config, tmp_path / "b.yaml"))
    assert line.endswith("vlm: Not a valid subclass of VLM. Got value: 5")
