"""Processes of a test, alone or the ranks of one run. Forked where that is safe: imports are paid for once."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from ts_lightning.cli import main

Call = Callable[[int], object]


def start(call: Call, log: Path, ranks: int = 1) -> Sequence[BaseProcess]:
    """Processes of `call(rank)`, whose value is the exit status; what they print goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork" if _may_fork() else "spawn")
    made = [context.Process(target=_child, args=(call, log, rank, ranks, port)) for rank in range(ranks)]
    for process in made:
        process.start()
    return made


def finish(call: Call, log: Path, ranks: int = 1, seconds: float = 300) -> None:
    """Start them and wait; AssertionError with the end of the log where one fails."""
    made = start(call, log, ranks)
    for process in made:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in made] == [0] * ranks, log.read_text()[-3000:]


def command(words: Sequence[str], rank: int = 0) -> int:
    """`ts-lightning` with these words, as `partial(command, words)` for `start` and `finish`."""
    return main(words)


def _may_fork() -> bool:
    """Not with a GPU (autograd has threads and refuses), nor with OpenMP's threads (a child waits for them for ever).

    Nor out of a process that has a process group: the child would have it, too.
    """
    return not torch.accelerator.is_available() and torch.get_num_threads() == 1 and not distributed.is_initialized()


def _child(call: Call, log: Path, rank: int, ranks: int, port: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
    if ranks > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    sys.exit(call(rank) or 0)  # type: ignore[arg-type]
