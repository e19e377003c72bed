"""What a start in a run directory restores, and what it leaves untouched."""

import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ts_lightning.runs.checkpoint_io import CheckpointIO, replace_file
from ts_lightning.runs.metrics_log import MetricsLog
from ts_lightning.runs.resume import Finished, begin_run, differences, set_aside, settle, versions_now
from ts_lightning.runs.run_keeper import RunKeeper
from ts_lightning.runs.run_lock import RunLock


def slurm(monkeypatch: pytest.MonkeyPatch, job: str, restart: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


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
    lock = RunLock(root)
    began = begin_run(root, lock, {"trainer": {}, **(config or {})}, given and str(given), resume)
    settle(began, root, MetricsLog(root, lock))
    assert lock.release()
    return began.ckpt_path


def position(steps: int) -> dict[str, Any]:
    counts = {"ready": steps, "started": steps, "processed": steps, "completed": steps}
    taken = {"step": {"total": {"completed": steps}}}
    loops = {"epoch_loop.batch_progress": {"total": counts}, "epoch_progress": {"current": {"processed": 0}}}
    loops["epoch_loop.automatic_optimization.optim_progress"] = {"optimizer": taken}
    stored = {"global_step": steps, "loops": {"fit_loop": loops}, "versions": versions_now()}
    return stored | {"pytorch-lightning_version": "2.6.6"}


def save(folder: Path, steps: int, config: Any = None) -> Path:
    stored = position(steps) | {"state_dict": {}, "config": {"trainer": {}, **(config or {})}}
    CheckpointIO().save_checkpoint(stored, folder / f"step={steps}.ckpt")
    return folder / f"step={steps}.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.usefixtures("no_wandb_run")
def test_a_requeued_job_goes_on_behind_the_given_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    two, four, six = (save(folder, steps, {"lr": 1}) for steps in (2, 4, 6))
    slurm(monkeypatch, "7", 0)
    assert start(tmp_path, four, config={"lr": 2}) == str(four)
    assert names(folder) == [two.name, four.name]
    assert names(tmp_path / "checkpoints.1") == [six.name]
    assert (tmp_path / "checkpoints.1" / f"{six.name}.sha256").is_file()
    slurm(monkeypatch, "7", 1)
    assert start(tmp_path, four, config={"lr": 2}) == str(four)  # killed before its first save: still the new settings
    shutil.copy(four, folder / "last.ckpt")  # as ModelCheckpoint's save_last, of the same step
    shutil.copy(f"{four}.sha256", folder / "last.ckpt.sha256")
    assert start(tmp_path, four, config={"lr": 2}) == str(four)
    (folder / "last.ckpt").unlink()
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
def test_resume_false_holds_for_the_first_start_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that takes longer than the time limit of its job would never end."""
    folder = tmp_path / "checkpoints"
    old = save(folder, 9)
    slurm(monkeypatch, "7", 1)
    assert start(tmp_path, resume=False) is None  # its first start was ended before it had begun
    assert names(tmp_path / "checkpoints.1") == [old.name]
    run = (tmp_path / "wandb_run_id").read_text()
    own = save(folder, 2)
    slurm(monkeypatch, "7", 2)
    assert start(tmp_path, resume=False) == str(own)
    assert (tmp_path / "wandb_run_id").read_text() == run
    slurm(monkeypatch, "8", 0)
    assert start(tmp_path, resume=False) is None


@pytest.mark.usefixtures("no_wandb_run")
def test_a_requeued_job_that_an_older_version_began_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those noted no job in the run's folder."""
    given, own = save(tmp_path / "elsewhere", 3), save(tmp_path / "checkpoints", 5)
    slurm(monkeypatch, "7", 1)
    assert start(tmp_path, given) == str(own)
    assert names(tmp_path / "checkpoints") == [own.name]


@pytest.mark.usefixtures("no_wandb_run")
def test_a_job_that_was_requeued_before_it_began_takes_the_given_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer ones are another job's, which went astray behind it."""
    slurm(monkeypatch, "6", 1)
    three, five = (save(tmp_path / "checkpoints", steps) for steps in (3, 5))
    start(tmp_path)
    slurm(monkeypatch, "7", 1)
    assert start(tmp_path, three) == str(three)
    assert names(tmp_path / "checkpoints.1") == [five.name]


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
    left = [
        ".metrics.csv.x",
        ".run.lock.x.tmp",
        "checkpoints/.step=2.ckpt.x.tmp",
        ".progress/rank-3.json",
        ".progress/rank-3.tmp",
    ]
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    start(tmp_path)
    assert [name for name in left if (tmp_path / name).exists()] == []
    (tmp_path / "metrics.csv").mkdir()  # can't be replaced
    with pytest.raises(OSError, match=r"metrics\.csv"):
        replace_file(tmp_path / "metrics.csv", "a")
    assert list(tmp_path.glob(".metrics*")) == []


def test_metrics_are_on_the_disk_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], os.fsync
    logger = MetricsLog(tmp_path)
    keeper = RunKeeper(RunLock(tmp_path), logger)
    logger.log_metrics({"a": 1.0}, step=0)
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.readlink(f"/proc/self/fd/{fd}")) or real(fd))
    keeper.on_save_checkpoint(None, None, {})
    assert seen == [str(tmp_path / "metrics.jsonl"), str(tmp_path)]


@pytest.mark.usefixtures("no_wandb_run")
def test_nothing_is_touched_before_every_check_has_passed(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 2, {"trainer": {"max_steps": 4}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a": 1.0}\n{"step": 3, "a": 1.0}\n')
    before = contents(tmp_path)
    for resume in (True, False):
        lock = RunLock(tmp_path)
        began = begin_run(tmp_path, lock, {"trainer": {"max_steps": 4}}, None, resume)
        lock.release()
        assert contents(tmp_path) == before
        os.environ.pop("WANDB_RUN_ID")
    settle(began, tmp_path, None)
    assert contents(tmp_path) != before


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".run.lock.guard")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.usefixtures("no_wandb_run")
def test_a_run_that_has_done_all_is_finished(tmp_path: Path) -> None:
    config = {"trainer": {"max_steps": 4, "max_epochs": -1}}
    save(tmp_path / "checkpoints", 4, config)
    with pytest.raises(Finished, match=r"step=4\.ckpt holds the last step, 4; nothing was changed"):
        start(tmp_path, config=config)
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.usefixtures("no_wandb_run")
def test_the_last_validation_counts_as_done_only_where_a_file_or_the_log_says_so(tmp_path: Path) -> None:
    """ModelCheckpoint saves before Lightning decides on a validation (None); a signal inside of it saves True."""
    config = {"trainer": {"max_steps": 4}}
    folder, files = tmp_path / "checkpoints", []
    for follows in (True, None):  # the newest file says least
        files.append(folder / f"{follows}.ckpt")
        stored = position(4) | {"state_dict": {}, "config": config, "validation_follows": follows}
        CheckpointIO().save_checkpoint(stored, files[-1])
    assert start(tmp_path, config=config) == str(files[0])
    files[0].unlink()
    assert start(tmp_path, config=config) == str(files[1])
    save(folder, 4, config)  # after the validation
    os.utime(folder / "step=4.ckpt", (0, 0))
    with pytest.raises(Finished, match=r"step=4\.ckpt holds the last step"):
        start(tmp_path, config=config)
    (folder / "step=4.ckpt").unlink()
    MetricsLog(tmp_path).mark("finished", 4)
    with pytest.raises(Finished, match=r"None\.ckpt holds the last step"):
        start(tmp_path, config=config)


@pytest.mark.usefixtures("no_wandb_run")
def test_last_is_a_file_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "a": 1.0}\n')
    before = contents(tmp_path)
    for name, seen in (("last", r"seen 'last' and no .*checkpoints/last\.ckpt"), ("hpc", "seen 'hpc'")):
        with pytest.raises(ValueError, match=seen):
            start(tmp_path, Path(name))
    assert contents(tmp_path) == before
    path = save(tmp_path / "checkpoints", 2).rename(tmp_path / "checkpoints/last.ckpt")
    four = save(tmp_path / "checkpoints", 4)
    assert start(tmp_path, Path("last")) == str(path)
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before["metrics.jsonl"])  # goes on in it
    assert names(tmp_path / "checkpoints.1") == [four.name]


@pytest.mark.usefixtures("no_wandb_run")
def test_longer_training_and_other_versions_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = save(tmp_path / "checkpoints", 4, {"trainer": {"max_steps": 4}})
    monkeypatch.setattr("ts_lightning.runs.resume.version", lambda name: "9.9")
    assert start(tmp_path, config={"trainer": {"max_steps": 6}}) == str(path)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("trainer.max_steps: 4 -> 6: goes on; from here on the learning rate follows the schedule")
    assert f"step=4.ckpt was written with other versions: torch {versions_torch()} -> 9.9, " in said[1]
    with pytest.raises(ValueError, match=r"seen trainer.max_steps: 4 -> 3, expected the configuration of step=4.ckpt"):
        start(tmp_path, config={"trainer": {"max_steps": 3}})


def versions_torch() -> str:
    return importlib.metadata.version("torch")


@pytest.mark.usefixtures("no_wandb_run")
def test_what_can_not_be_gone_on_from_is_passed_over_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe, no configuration, steps that the loops don't know, steps as text, NaN weights, no permission to read."""
    folder, config = tmp_path / "checkpoints", {"trainer": {"a": 1}}
    good = save(folder, 2, config)
    os.mkfifo(folder / "pipe.ckpt")
    planted = {
        "bare": position(9) | {"state_dict": {}},
        "absurd": position(9) | {"state_dict": {}, "config": config, "global_step": 10**30},
        "text": position(9) | {"state_dict": {}, "config": config, "global_step": "9"},
        "nan": position(9) | {"state_dict": {"w": torch.tensor([1.0, float("nan")])}, "config": config},
        "unsigned": position(9) | {"state_dict": {}, "config": config, "pytorch-lightning_version": None},
        "other": {"state_dict": {}, "loops": {"fit_loop": []}, "global_step": 9, "config": config},
    }
    for name, stored in planted.items():
        CheckpointIO().save_checkpoint(stored, folder / f"{name}.ckpt")
    (folder / "locked.ckpt").symlink_to("nowhere")
    assert start(tmp_path, config=config) == str(good)
    with pytest.raises(ValueError, match=r"nan\.ckpt: seen NaN or Inf in w, expected finite weights"):
        start(tmp_path, folder / "nan.ckpt", config=config)
    with pytest.raises(ValueError, match=r"unsigned\.ckpt: seen pytorch-lightning_version None, expected the version"):
        start(tmp_path, folder / "unsigned.ckpt", config=config)
    for name in (*planted, "pipe", "locked"):
        assert f"{name}.ckpt: passed over (" in caplog.text
