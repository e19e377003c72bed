"""The lock of a run directory, metrics.csv over restarts, and which settings may change."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from ts_lightning.training.metrics_csv import MetricsCSV, cut_metrics, read_rows
from ts_lightning.training.resume import differences, set_aside
from ts_lightning.training.run_directory import keep_wandb_run
from ts_lightning.training.run_lock import RunLock, process_start


def slurm(monkeypatch: pytest.MonkeyPatch, job: str, restart: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def test_a_living_owner_is_named(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    with pytest.raises(ValueError, match=rf"seen in use by process {os.getpid()} on .*, expected no other run"):
        second.acquire()
    first.release()
    second.acquire()
    second.check()


def test_a_requeued_job_takes_over_and_the_old_writer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch, "7", 0)
    old = RunLock(tmp_path)
    old.acquire()
    slurm(monkeypatch, "7", 1)
    new = RunLock(tmp_path)
    new.acquire()
    with pytest.raises(ValueError, match=r"seen taken over by job 7 restart 1 .*, expected job 7 restart 0 "):
        old.check()
    with pytest.raises(ValueError, match="in use by job 7 restart 1"):
        old.acquire()
    old.release()  # not its own any more
    new.check()
    slurm(monkeypatch, "8", 5)
    with pytest.raises(ValueError, match="in use by job 7"):
        RunLock(tmp_path).acquire()


def test_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as process:
        first.me |= {"pid": process.pid, "started": process_start(process.pid)}
        first.acquire()
        with pytest.raises(ValueError, match=f"in use by process {process.pid}"):
            RunLock(tmp_path).acquire()
        process.kill()
    stored = json.loads((tmp_path / "run.lock").read_text())
    assert process_start(stored["pid"]) != stored["started"]
    RunLock(tmp_path).acquire()
    other = stored | {"host": "elsewhere"}  # there only the file's time tells
    (tmp_path / "run.lock").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="on elsewhere"):
        RunLock(tmp_path).acquire()
    long_ago = time.time() - 500
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    RunLock(tmp_path).acquire()


def log(folder: Path, rows: list[tuple[int, dict[str, float]]]) -> None:
    logger = MetricsCSV(str(folder))
    for step, row in rows:
        logger.log_metrics(row, step)
        logger.save()


def test_metrics_go_on_behind_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log(tmp_path, [(0, {"a": 1.0}), (1, {"a": 2.0}), (1, {"a": 2.0}), (1, {"val/b": 3.0}), (2, {"a": 9.0})])
    with path.open("a") as file:
        file.write("7.12")  # a crash in the middle of a row
    assert [row["a"] for row in read_rows(path)] == ["1.0", "2.0", "", "9.0"]  # the repeated row is there once
    cut_metrics(path, 2, validation_follows=False)
    assert [(row["step"], row["a"], row["val/b"]) for row in read_rows(path)] == [
        *(("0", "1.0", ""), ("1", "2.0", ""), ("1", "", "3.0"))
    ]
    cut_metrics(path, 2, validation_follows=True)
    log(tmp_path, [(1, {"val/b": 4.0}), (2, {"a": 5.0, "c": 6.0})])
    assert [(row["step"], row["a"], row["val/b"], row["c"]) for row in read_rows(path)] == [
        *(("0", "1.0", "", ""), ("1", "2.0", "", ""), ("1", "", "4.0", ""), ("2", "5.0", "", "6.0"))
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_replaced_owner_adds_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, logger = RunLock(tmp_path), MetricsCSV(str(tmp_path))
    lock.acquire()
    logger.lock = lock
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    slurm(monkeypatch, "7", 1)
    monkeypatch.setattr("ts_lightning.training.run_lock._alive", lambda *_: False)
    RunLock(tmp_path).acquire()
    logger.log_metrics({"a": 2.0}, step=1)
    with pytest.raises(ValueError, match="taken over by job 7"):
        logger.save()
    logger.finalize("failed")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.csv")] == ["0"]


def test_differences_leave_out_what_does_not_change_training() -> None:
    old = {
        "seed": 0,
        "trainer": {"devices": 1, "max_steps": 5, "callbacks": [{"class_path": "a", "init_args": {"n": 1}}]},
        "data": {"init_args": {"train": {"shards": "x"}, "num_workers": 0}},
    }
    new = {
        "seed": 0,
        "trainer": {"devices": 4, "max_steps": 6, "callbacks": [{"class_path": "a", "init_args": {"n": 2}}]},
        "data": {"init_args": {"train": {"shards": "y", "weight": 2}, "num_workers": 3}},
    }
    assert differences(old, old) == []
    assert differences(old, new) == [
        "trainer.max_steps: 5 -> 6",
        "trainer.callbacks[0].init_args.n: 1 -> 2",
        "data.init_args.train.weight: None -> 2",
    ]


def test_set_aside_counts_up(tmp_path: Path) -> None:
    for text in "ab":
        (tmp_path / "metrics.csv").write_text(text)
        set_aside(tmp_path / "metrics.csv")
    assert [(tmp_path / f"metrics.{i}.csv").read_text() for i in (1, 2)] == ["a", "b"]


def test_the_wandb_run_is_the_same_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for _ in range(2):
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        keep_wandb_run(tmp_path)
        seen.add(os.environ["WANDB_RUN_ID"])
    assert len(seen) == 1
