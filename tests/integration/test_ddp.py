"""Two CPU processes give the loss, the gradients and the metrics of one."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks
from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data.order import EpochOrder
from ts_lightning.runs.load import load

DDP = Path(__file__).parents[2] / "configs/trainer/ddp.yaml"


def run_one(command: str, config: dict[str, Any], root: Path) -> None:
    root.mkdir(exist_ok=True)
    assert main([command, "-c", tiny.save(config, root / "given.yaml")]) == 0


def run_two(command: str, config: dict[str, Any], root: Path, *args: str) -> None:
    root.mkdir(exist_ok=True)
    words = [command, "-c", tiny.save(config, root / "given.yaml"), *args]
    ranks.finish(partial(ranks.command, words), root / "ranks.log", 2)


def launch(config: dict[str, Any], root: Path, *args: str) -> None:
    """As a user does: the command, which starts the second process itself."""
    root.mkdir(exist_ok=True)
    line = [sys.executable, "-m", "ts_lightning", "fit", "-c", tiny.save(config, root / "given.yaml"), *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same two steps of SGD in one and in two processes.

    In the first global batch rank 1 has understanding rows only; forty experts for a few alike tokens leave some idle.
    """
    folder = tmp_path_factory.mktemp("ddp")
    kinds = ["rec", "scout", "negative", "rec", "colour", "colour", "colour", "colour", "scout", "rec"]
    order = EpochOrder([10], 0, 0, 16384)
    by_record = [kinds[list(order).index(i)] for i in range(10)]
    shards = tiny.write(folder, by_record)
    vlm = {**tiny.TWIN, "init_args": {**tiny.TWIN["init_args"], "num_experts": 40}}
    roots = folder / "one", folder / "two"
    for root in roots:
        config = tiny.config(shards, root, vlm, balance_coeff=0.1)
        config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
        config["data"]["init_args"]["global_batch_size"] = 8
        config["trainer"] |= {"max_steps": 2, "limit_val_batches": 1.0, "gradient_clip_val": 1.0}
        config["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": 1}
        if root == roots[0]:
            run_one("fit", config, root)
        else:
            launch(config, root, "-c", str(DDP), "--trainer.accelerator", "cpu")
    return roots


def test_gradients_are_equal(runs: tuple[Path, Path]) -> None:
    one, two = (load(next((root / "checkpoints").glob("*.ckpt"))).vlm for root in runs)
    other = two.trainable_state_dict()
    for name, value in one.trainable_state_dict().items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=name)
    idle = 0
    for twin in one.twins:
        start = twin.understanding.experts if hasattr(twin.understanding, "experts") else [twin.understanding]
        experts = twin.packages["grounding"].experts.experts
        moved = [
            not torch.equal(p, q)
            for i, expert in enumerate(experts)
            for p, q in zip(expert.parameters(), start[i % len(start)].parameters(), strict=True)
        ]
        assert any(moved)
        idle += moved.count(False)
    assert idle > 0, "no expert was without tokens: the test does not cover that case"


def test_losses_and_metrics_are_equal(runs: tuple[Path, Path]) -> None:
    one, two = (rows(root / "metrics.csv") for root in runs)
    assert len(one) == len(two) == 4
    names = [name for name in one[0] if name.startswith(("train/", "val/")) and tiny.steady(name)]
    assert {"train/loss", "train/balance", "train/alpha", "val/toy/miou", "val/toy/accuracy"} <= set(names)
    for a, b in zip(one, two, strict=True):
        assert {n: bool(a[n]) for n in names} == {n: bool(b[n]) for n in names}
        assert [float(b[n]) for n in names if a[n]] == pytest.approx([float(a[n]) for n in names if a[n]], rel=1e-6)


def test_predictions_are_joined(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (path,) = (runs[0] / "checkpoints").glob("*.ckpt")
    config = {"trainer": {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "default_root_dir": str(tmp_path)}}
    run_two("predict", config, tmp_path, "--ckpt_path", str(path))
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [record["key"] for record in records] == [f"{i:04d}" for i in range(10)]
