"""Array tasks that generate into one folder, killed and started again at random moments, also twice at once."""

import errno
import fcntl
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.unit.generation_samples import detection
from ts_lightning.cli import main
from ts_lightning.data import index_shards
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.shard_work import only_one, remove_unfinished

SHARDS, TASKS, TRIALS, ROUNDS = 6, 3, 5, 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(SHARDS):
        (path,) = write_shards((detection(number * 10 + i) for i in range(10)), folder / "new", f"in{number}")
        path.rename(folder / f"in{number}.tar")
    return folder


def start(inputs: Path, out: Path, task: int | None) -> int:
    """A forked process that works as array task `task` of `TASKS`, or alone on everything; its id."""
    if child := os.fork():
        return child
    status = 70
    try:
        if task is not None:
            os.environ |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(TASKS)}
            os.environ |= {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": str(TASKS - 1)}
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        status = main(["data", "generate", "scout", f"{inputs}/in*.tar", "--out", str(out), "--negatives", "0.3"])
    finally:
        os._exit(status)  # nothing of pytest runs in the child


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(out: Path) -> dict[str, bytes]:
    """What a folder offers: the shards' bytes, the notes without their times, the card."""
    found = {path.name: path.read_bytes() for path in [*out.glob("*.tar"), out / "README.md"]}
    for note in out.glob("*.json"):
        kept = {k: v for k, v in json.loads(note.read_text()).items() if "second" not in k}
        found[note.name] = json.dumps(kept).encode()
    return found


def test_every_shard_is_whole_and_none_is_there_twice(inputs: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    assert end(start(inputs, tmp_path / "calm", None)) == 0
    whole, expected = time.monotonic() - began, contents(tmp_path / "calm")
    draw, ends = Random(0), Counter[int]()
    for trial in range(TRIALS):
        out = tmp_path / str(trial)
        for _ in range(ROUNDS):
            tasks = [*range(TASKS), draw.randrange(TASKS)]  # one of them runs twice at once
            children = [start(inputs, out, task) for task in tasks]
            time.sleep(draw.random() * whole / 2)
            for child in draw.sample(children, draw.randrange(1, len(children) + 1)):
                os.kill(child, signal.SIGKILL)
            found = [end(child) for child in children]
            ends.update(found)
            if -signal.SIGKILL not in found:  # faster than the calm run was: the machine has less to do by now
                whole /= 2
        check(inputs, out, expected)
    print(ends)
    assert ends[-signal.SIGKILL] >= 2 * TRIALS
    assert not set(ends) - {0, 1, -signal.SIGKILL}  # 1: another process was at a shard


def check(inputs: Path, out: Path, expected: dict[str, bytes]) -> None:
    """After one more run of each task the folder holds what an undisturbed run writes, and nothing else."""
    for task in range(TASKS):
        assert end(start(inputs, out, task)) == 0
    assert contents(out) == expected
    left = {path.name for path in out.iterdir()} - expected.keys()
    assert {name for name in left if not name.endswith(".idx")} == {".locks"}
    keys = [key for path in sorted(out.glob("*.tar")) for key in index_shards(str(path)).shards[0].question_keys()]
    assert len(keys) == index_shards(f"{out}/*.tar").num_samples > 100
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert end(start(inputs, out, None)) == 0  # everything is done, whoever asks
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before


def test_leavings_of_another_shard_stay(tmp_path: Path) -> None:
    for name in (".scout-in-abcdefgh", ".scout-in-000000-abcdefgh", ".scout-inn-abcdefgh"):
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path, "scout-in")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scout-in-000000-abcdefgh", ".scout-inn-abcdefgh"]


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    read, write = os.pipe()
    if not (child := os.fork()):
        with only_one(tmp_path, "a"):
            os.write(write, b"x")
            time.sleep(60)
            os._exit(0)
    os.read(read, 1)
    with only_one(tmp_path, "a") as free, only_one(tmp_path, "b") as other:
        assert (free, other) == (False, True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with only_one(tmp_path, "a") as free:
        assert free


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for wait in (False, True):
        with only_one(tmp_path, "a", wait) as free:
            assert free
