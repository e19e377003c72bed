"""The lock of a run directory, metrics.csv over restarts, and which settings may change."""

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ts_lightning.runs.metrics_csv import MetricsCSV, cut_metrics, read_rows, write_rows
from ts_lightning.runs.run_directory import begin_run, keep_wandb_run

from ts_lightning.runs import run_lock
from ts_lightning.runs.checkpoint_io import CheckpointIO
from ts_lightning.runs.resume import differences, set_aside
from ts_lightning.runs.run_keeper import RunKeeper
from ts_lightning.runs.run_lock import RunLock, process_start


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
    other = stored | {"host": "elsewhere", "token": "another"}  # there only the file's time tells
    (tmp_path / "run.lock").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="on elsewhere"):
        RunLock(tmp_path).acquire()
    long_ago = time.time() - 500
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    RunLock(tmp_path).acquire()


def test_of_simultaneous_starters_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second one judges a lock without an owner, the first one takes it; a killed one is in nobody's way."""
    first, second, path = RunLock(tmp_path), RunLock(tmp_path), tmp_path / "run.lock"
    dead = first.me | {"token": "dead", "started": "0"}

    def first_is_faster(*_: object) -> bool:
        monkeypatch.undo()
        first.acquire()
        return True

    path.write_text(json.dumps(dead))
    (tmp_path / ".run.lock.dead.next").write_text(json.dumps(dead | {"token": "killed"}))
    monkeypatch.setattr(second, "_replaceable", first_is_faster)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        second.acquire()
    first.check()
    monkeypatch.setattr(run_lock, "STALE_SECONDS", -1.0)
    for damaged in (path, tmp_path / ".run.lock.1.next"):
        damaged.write_text("")
    second.acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_the_lock_stays_fresh_by_itself_until_it_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "REFRESH_SECONDS", 0.01)
    path, lock = tmp_path / "run.lock", RunLock(tmp_path)

    def refreshed() -> bool:
        os.utime(path, (1, 1))
        end = time.monotonic() + 1
        while path.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        return path.stat().st_mtime > 1

    lock.acquire()
    assert refreshed()  # with no step of any training
    other = json.dumps(lock.me | {"token": "another"})
    path.write_text(other)
    assert not refreshed()
    assert path.read_text() == other
    assert not lock.release()


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
    monkeypatch.setattr("ts_lightning.runs.run_lock._alive", lambda *_: False)
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
    old["data"]["init_args"]["train"] |= {"manifest": "x.json"}
    old["model"] = {"vlm": {"init_args": {"packages": {"grounding": "x"}}}}
    new["model"] = {"vlm": {"init_args": {"packages": {"grounding": "y", "reading": "z"}}}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "trainer.max_steps: 5 -> 6",
        "trainer.callbacks[0].init_args.n: 1 -> 2",
        "data.init_args.train.weight: None -> 2",
        "model.vlm.init_args.packages.reading: None -> z",
    ]


def test_set_aside_counts_up(tmp_path: Path) -> None:
    for text in "ab":
        (tmp_path / "metrics.csv").write_text(text)
        set_aside(tmp_path / "metrics.csv")
    assert [(tmp_path / f"metrics.{i}.csv").read_text() for i in (1, 2)] == ["a", "b"]


@pytest.fixture
def no_wandb_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "")  # so that it is put back afterwards
    monkeypatch.delenv("WANDB_RUN_ID")


def start(root: Path, given: Path | None = None, resume: bool = True, config: Any = None) -> str | None:
    """Begin a run as a new process does, and end it at once."""
    os.environ.pop("WANDB_RUN_ID", None)
    keeper = RunKeeper()
    keeper.config = config
    found = begin_run(root, keeper, given and str(given), resume)
    assert keeper.lock is not None
    assert keeper.lock.release()
    return found


def save(folder: Path, steps: int, config: Any = None) -> Path:
    total = {"completed": steps, "processed": steps}
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": total}}}
    stored = {"state_dict": {}, "global_step": steps, "loops": loops, "config": config}
    CheckpointIO().save_checkpoint(stored, folder / f"step={steps}.ckpt")
    return folder / f"step={steps}.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.usefixtures("no_wandb_run")
def test_a_requeued_job_goes_on_behind_the_given_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    two, four, six = (save(folder, steps, {"lr": 1}) for steps in (2, 4, 6))
    assert start(tmp_path, four, config={"lr": 2}) == str(four)
    assert names(folder) == [two.name, four.name]
    assert names(tmp_path / "checkpoints.1") == [six.name]
    assert (tmp_path / "checkpoints.1" / f"{six.name}.sha256").is_file()
    slurm(monkeypatch, "7", 1)
    assert start(tmp_path, four, config={"lr": 2}) == str(four)  # killed before its first save: still the new settings
    five = save(folder, 5, {"lr": 2})
    assert start(tmp_path, four, config={"lr": 2}) == str(five)

    slurm(monkeypatch, "8", 0)
    other = save(tmp_path / "elsewhere", 3)
    assert start(tmp_path, other) == str(other)
    assert names(folder) == []
    assert names(tmp_path / "checkpoints.2") == [two.name, four.name, five.name]
    slurm(monkeypatch, "8", 1)
    assert start(tmp_path, other) == str(other)


@pytest.mark.usefixtures("no_wandb_run")
def test_a_run_that_starts_anew_is_a_new_wandb_run(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 2, {})
    ids = []
    for resume in (True, True, False):
        start(tmp_path, resume=resume, config={})
        ids.append((tmp_path / "wandb_run_id").read_text())
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "wandb_run_id.1").read_text() == ids[0]


@pytest.mark.usefixtures("no_wandb_run")
def test_what_killed_processes_left_over_is_removed(tmp_path: Path) -> None:
    left = [".metrics.csv.x", "checkpoints/.step=2.ckpt.x.tmp", ".progress/rank-3.json", ".progress/rank-3.tmp"]
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    start(tmp_path)
    assert [name for name in left if (tmp_path / name).exists()] == []
    (tmp_path / "metrics.csv").mkdir()  # can't be replaced
    with pytest.raises(OSError, match=r"metrics\.csv"):
        write_rows(tmp_path / "metrics.csv", ["a"], [])
    assert list(tmp_path.glob(".metrics*")) == []


def test_metrics_are_on_the_disk_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.readlink(f"/proc/self/fd/{fd}")) or real(fd))
    keeper, logger = RunKeeper(), MetricsCSV(str(tmp_path))
    keeper.lock = RunLock(tmp_path)
    keeper.lock.acquire()
    logger.log_metrics({"a": 1.0}, step=0)
    trainer = SimpleNamespace(training=False, loggers=[logger], _logger_connector=None)
    keeper.on_save_checkpoint(trainer, None, {})
    assert seen == [str(tmp_path / "metrics.csv"), str(tmp_path)]
    keeper.lock.release()


@pytest.mark.usefixtures("no_wandb_run")
def test_the_wandb_run_is_the_same_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for _ in range(2):
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        keep_wandb_run(tmp_path)
        seen.add(os.environ["WANDB_RUN_ID"])
    assert len(seen) == 1
