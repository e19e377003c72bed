"""The main job inside a job of SLURM."""

import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from ts_lightning.cli import main_job


@pytest.mark.parametrize("tasks", [{"SLURM_NTASKS": "4"}, {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}])
def test_its_ranks_are_its_own_whatever_tasks_the_job_has(
    tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: dict[str, str] = {}

    def run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[Any]:
        began.update(env or {})
        return subprocess.CompletedProcess(command, 2)

    for name, value in {**tasks, "SLURM_JOB_NAME": "batch"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main_job.subprocess, "run", run)
    for name in ("validate", "score_in_words"):
        monkeypatch.setattr(main_job, name, lambda *_: {})
    with pytest.raises(SystemExit):
        main_job.main_job(Path("run.yaml"), tmp_path, tmp_path)
    for name, value in began.items():
        monkeypatch.setenv(name, value)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    assert trainer.world_size == 2
