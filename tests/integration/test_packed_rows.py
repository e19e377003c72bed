"""Training on rows of several questions: the step of separate rows, on two ranks, and resumed in the middle.

Bitwise: the same steps, their shapes, rows and order alike.
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import tiny
from tests.integration.test_ddp import DDP, run_one, run_two
from ts_lightning.data.write import write_shards
from ts_lightning.runs.load import load

KINDS = ["rec", "scout", "colour", "negative"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight records, four questions of two tasks about the picture of each."""
    folder = tmp_path_factory.mktemp("packed")
    samples = []
    for record in range(8):
        picture = tiny.sample(record, "rec")
        for j, kind in enumerate(KINDS):
            own = {"id": f"{kind}-{record}", "key": f"{4 * record + j:04d}"}
            samples.append(
                replace(tiny.sample(record, kind), images=picture.images, **own, image_bytes=picture.image_bytes)
            )
    write_shards(samples, folder, "train")
    return f"{folder}/train-*.tar"


def config(shards: str, root: Path, packed: bool, **trainer: Any) -> dict[str, Any]:
    """Two steps, each over all questions."""
    made = tiny.config(shards, root, balance_coeff=0.1)
    made["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    rows = {"global_batch_size": 8, "micro_batch_size": 2, "questions_per_row": 8, "join_rows": True} if packed else {}
    made["data"]["init_args"] |= {"global_batch_size": 32, "micro_batch_size": 8, **rows}
    made["trainer"] |= {"max_steps": 2, **trainer}
    return made


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load(next((root / "checkpoints").glob("*.ckpt"))).vlm.trainable_state_dict()


def logged(root: Path) -> list[dict[str, float]]:
    with (root / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and tiny.steady(k)} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def packed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    run_one("fit", config(shards, root, packed=True), root)
    return root


def test_the_step_is_that_of_separate_rows(shards: str, packed: Path, tmp_path: Path) -> None:
    run_one("fit", config(shards, tmp_path, packed=False), tmp_path)
    for ours, theirs in zip(logged(packed), logged(tmp_path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    expected = weights(tmp_path)
    for name, value in weights(packed).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_two_ranks_are_one(shards: str, packed: Path, tmp_path: Path) -> None:
    run_two("fit", config(shards, tmp_path, packed=True), tmp_path, "-c", str(DDP), "--trainer.accelerator", "cpu")
    expected = weights(packed)
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_resumed_run_is_the_whole_run(shards: str, tmp_path: Path) -> None:
    def given(root: Path, steps: int) -> dict[str, Any]:
        made = config(shards, root, packed=True, max_steps=steps)
        made["data"]["init_args"] |= {"global_batch_size": 2, "micro_batch_size": 1}
        schedule = {"class_path": "ts_lightning.training.schedule.WarmupCosine", "init_args": {"total_steps": 3}}
        made["model"]["init_args"]["lr_scheduler"] = schedule
        return made

    run_one("fit", given(tmp_path / "whole", 3), tmp_path / "whole")
    run_one("fit", given(tmp_path / "parts", 1), tmp_path / "parts")
    run_one("fit", given(tmp_path / "parts", 3), tmp_path / "parts")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "parts").items())
