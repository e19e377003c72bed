"""The wandb overlay without an account: a run on disk, beside metrics.csv."""

from pathlib import Path

import pytest
import wandb

from tests.integration import tiny
from ts_lightning.cli import main

OVERLAY = Path(__file__).parents[2] / "configs/trainer/wandb.yaml"


def test_offline_mode_writes_the_run(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_RUN_ID", "")
    monkeypatch.delenv("WANDB_RUN_ID")  # fit sets it; now it is forgotten afterwards
    config = tiny.config(shards, tmp_path / "run")
    config["trainer"] |= {"max_steps": 1, "enable_checkpointing": False}
    try:
        assert main(["fit", "-c", tiny.save(config, tmp_path / "fit.json"), "-c", str(OVERLAY)]) == 0
    except wandb.Error as error:
        pytest.skip(f"wandb can't start here: {error}")
    finally:
        wandb.teardown()
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    run = (tmp_path / "run/wandb_run_id").read_text()
    assert folder.name.endswith(run)
    assert (folder / f"run-{run}.wandb").stat().st_size > 0
    assert "train/loss" in (tmp_path / "run/metrics.csv").read_text()
