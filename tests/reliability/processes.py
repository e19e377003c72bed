"""Children that run `ts-lightning fit`: forked, so that imports are paid once; several are the ranks of one run."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from ts_lightning.cli import main
from ts_lightning.training import BaseModule

_fork = multiprocessing.get_context("fork")
Before = Callable[[int], None]  # called with the rank in the child, before the command


def start(args: Sequence[str], log: Path, before: Before | None = None, ranks: int = 1) -> Sequence[BaseProcess]:
    """Start `fit` with `args` as so many ranks; output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork.Process(target=_child, args=(list(args), log, before, r, ranks, port)) for r in range(ranks)]
    for child in children:
        child.start()
    return children


def finish(children: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit statuses (None: had to be killed after `seconds`; negative: signal)."""
    end = time.monotonic() + seconds
    statuses: list[int | None] = []
    for child in children:
        child.join(max(0.1, end - time.monotonic()))
        statuses.append(child.exitcode)
        if child.exitcode is None:
            child.kill()
            child.join()
    return statuses


def _child(args: list[str], log: Path, before: Before | None, rank: int, ranks: int, port: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if ranks > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if before is not None:
        before(rank)
    sys.exit(main(["fit", "--allow_classes", "tests.reliability.tiny_run", *args]))


def at(cls: type, method: str, when: Callable[[BaseModule, int], bool], action: Callable[[], None]) -> None:
    """Run `action` before the first call of a method for which `when(module, number of the call)` holds."""
    real, calls, done = getattr(cls, method), [0], [False]

    def wrapped(self: BaseModule, *args: object, **options: object) -> object:
        calls[0] += 1
        if not done[0] and when(self, calls[0]):
            done[0] = True
            action()
        return real(self, *args, **options)

    setattr(cls, method, wrapped)


def record_ids(path: Path) -> None:
    """Append "step id id ..." to `path` for every training step from now on; one write, so a kill cuts no line."""
    real = BaseModule.training_step

    def wrapped(self: BaseModule, batch: dict, batch_idx: int) -> torch.Tensor:
        line = f"{self.trainer.global_step} {' '.join(batch['ids'])}\n".encode()
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(output, line)
        os.close(output)
        return real(self, batch, batch_idx)

    BaseModule.training_step = wrapped  # type: ignore[method-assign]


def read_ids(path: Path) -> dict[int, list[str]]:
    """Ids of each step that counts: of a step that was done again after a kill, the last time."""
    return {int(words[0]): words[1:] for words in map(str.split, path.read_text().splitlines())}
