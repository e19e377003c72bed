"""The processes of a loader, and signals to all processes of a run."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest

from ts_lightning.data.loader import _Loader
from ts_lightning.runs.run_lock import process_start


def read(pipe: Connection) -> None:
    """Take four batches from two processes, with a pause behind the second until a signal came; then end those two."""
    os.setsid()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
    loader = _Loader([0, 1, 2, 3], [[0], [1], [2], [3]], 2, 1, list, [])
    seen = []
    for batch in loader._loader:
        seen += batch
        if len(seen) == 2:  # one of each process
            pipe.send(None)
            while not told:
                time.sleep(0.01)
            time.sleep(0.2)  # a process that the signal has ended is noticed
            workers = multiprocessing.active_children()
    pipe.send(seen)
    for worker in workers:
        worker.terminate()
        worker.join(10)
    pipe.send([worker.exitcode for worker in workers])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_ends_no_loader(number: int) -> None:
    """As of SLURM and systemd, and of a shell's `kill -- -PGID`; what `fit` does at it needs the batches of a step."""
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    child = context.Process(target=read, args=(theirs,))
    child.start()
    theirs.close()
    pipe.recv()
    os.killpg(child.pid, number)
    assert pipe.recv() == [0, 1, 2, 3]
    assert pipe.recv() == [0, 0]  # but their own process ends them
    child.join(20)
    assert child.exitcode == 0


class Stalled:
    """Records on a disk that hangs, read by a process that says who it is."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def __getitem__(self, number: int) -> None:
        self.pipe.send(os.getpid())
        time.sleep(60)


def stall(pipe: Connection) -> None:
    next(iter(_Loader(Stalled(pipe), [[0]], 1, 1, list, [])._loader))


@pytest.mark.parametrize(("seconds", "told"), [(0.1, False), (60, True)])
def test_a_stalled_loader_ends_when_its_run_was_killed(
    seconds: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, and at once where somebody sends SIGTERM."""
    monkeypatch.setattr("ts_lightning.data.loader.ORPHAN_SECONDS", seconds)
    context = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe()
    child = context.Process(target=stall, args=(theirs,))
    child.start()
    worker = pipe.recv()
    try:
        child.kill()
        child.join()
        if told:
            os.kill(worker, signal.SIGTERM)
        until = time.monotonic() + 10
        while process_start(worker) and time.monotonic() < until:
            time.sleep(0.01)
        assert not process_start(worker)
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
