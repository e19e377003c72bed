"""A trainer made in Python."""

import pytest

from ts_lightning.runs.run import quiet_trainer


@pytest.mark.parametrize("tasks", ["SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"])
def test_a_quiet_trainer_is_one_process_in_a_job_of_four_tasks(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "batch")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv(tasks, "4")
    assert quiet_trainer().world_size == 1
