"""The lock of a run directory."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from ts_lightning.data.file_lock import locked
from ts_lightning.runs import run_lock
from ts_lightning.runs.run_folder import check_folder
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


@pytest.mark.parametrize("namespace", ["pid:[1]", None])
def test_an_owner_in_another_container_of_the_host_is_judged_by_its_file(tmp_path: Path, namespace: str | None) -> None:
    """Its process ids mean nothing here. None: a file of an older version, which does not say where it counted."""
    other = RunLock(tmp_path).me | {"token": "another", "started": "0", "namespace": namespace}
    (tmp_path / "run.lock").write_text(json.dumps({k: v for k, v in other.items() if v is not None}))
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
        RunLock(tmp_path).acquire()
    long_ago = time.time() - 500
    os.utime(tmp_path / "run.lock", (long_ago, long_ago))
    RunLock(tmp_path).acquire()


def test_a_run_begins_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunLock(tmp_path).acquire()
    with pytest.raises(ValueError, match="in use by"):
        RunLock(tmp_path).acquire()


def test_a_starter_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "GUARD_SECONDS", 0.1)
    with locked(tmp_path / run_lock.GUARD), pytest.raises(ValueError, match="seen others that start here for 0 s"):
        RunLock(tmp_path).acquire()
    RunLock(tmp_path).acquire()


def test_of_simultaneous_starters_one_passes(tmp_path: Path) -> None:
    """Eight processes find the lock of a dead owner at once."""
    (tmp_path / "run.lock").write_text(json.dumps(RunLock(tmp_path).me | {"token": "dead", "started": "0"}))
    context = multiprocessing.get_context("fork")
    passed, ready = context.Queue(), context.Barrier(8)

    def begin() -> None:
        lock = RunLock(tmp_path)
        ready.wait()
        try:
            lock.acquire()
            passed.put("passed")
        except ValueError as error:
            passed.put(str(error))
        ready.wait()  # the owner lives until all have judged it

    children = [context.Process(target=begin) for _ in range(8)]
    for child in children:
        child.start()
    said = [passed.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert said.count("passed") == 1
    assert all("in use by process" in text for text in said if text != "passed")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '{"restart": "x"}', "null", "\x00"])
def test_what_is_no_lock_of_ours_has_no_owner(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.lock").write_text(text)
    RunLock(tmp_path).acquire()


def test_a_restart_count_that_is_no_number_has_no_owner(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(json.dumps(RunLock(tmp_path).me | {"restart": "x", "token": "other"}))
    RunLock(tmp_path).acquire()


def test_a_lock_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.lock")
    with pytest.raises(ValueError, match=r"run\.lock: seen something that is no file"):
        RunLock(tmp_path).acquire()


def test_a_clock_that_went_back_keeps_nobody_out(tmp_path: Path) -> None:
    """Another host's file is compared with one that was touched on the same disk just now, in both directions."""
    other = RunLock(tmp_path).me | {"host": "elsewhere", "token": "another"}
    for days in (-10, 10):
        (tmp_path / "run.lock").write_text(json.dumps(other))
        then = time.time() + days * 86_400
        os.utime(tmp_path / "run.lock", (then, then))
        lock = RunLock(tmp_path)
        lock.acquire()
        assert lock.release()


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


def test_the_folder_of_a_run_that_was_killed_at_its_start_is_that_of_a_run(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / "wandb_run_id").write_text("x")
    check_folder(tmp_path)
    lock.release()
    check_folder(tmp_path)
