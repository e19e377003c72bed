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
    config["trainer"] |= {"max_steps": 1, "enable_checkpointing": False, "limit_val_batches": 1.0}
    config["trainer"] |= {"val_check_interval": 1, "check_val_every_n_epoch": None}
    try:
        assert main(["fit", "-c", tiny.save(config, tmp_path / "fit.json"), "-c", str(OVERLAY), "--pictures", "2"]) == 0
    except wandb.Error as error:
        pytest.skip(f"wandb can't start here: {error}")
    finally:
        wandb.teardown()
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    run = (tmp_path / "run/wandb_run_id").read_text()
    assert folder.name.endswith(run)
    assert (folder / f"run-{run}.wandb").stat().st_size > 0
    assert len([*folder.glob("files/media/images/pictures/toy_*.png")]) == 1  # a sheet of two questions
    assert "train/loss" in (tmp_path / "run/metrics.csv").read_text()
