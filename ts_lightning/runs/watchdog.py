"""Ends every rank when one is stuck: nobody waits in a collective for a peer that will not come."""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ts_lightning.runs.run_lock import process_start

FOLDER = ".progress"
EXIT_STATUS = 70


class Watchdog(Callback):
    """A thread on each rank that ends its process after `seconds` without a step, evaluation batch or save.

    Ranks write where they stand to `<root>/.progress/rank-<r>.json` twice a second; the last words name the one
    that is furthest behind. Marks carry a name of their run: those of another one do not count. Stuck ranks on the
    same host are killed: a stopped process can't end itself. On other hosts their own watchdog, or
    `srun --kill-on-bad-exit`, does it.

    A time-out of the process group and `faulthandler` alone don't do it: with both at 5 s a rank that was stopped
    (SIGSTOP) was still there after 21 s, for it runs nothing, and the rank that waits for it names itself.
    """

    def __init__(self, root: str | Path, seconds: float = 1800.0) -> None:
        self.folder = Path(root) / FOLDER
        self.seconds = seconds
        self.mark: dict[str, Any] = {"moves": 0}  # every rank makes the same moves
        self.moved = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def _progress(self, trainer: L.Trainer, phase: str) -> None:
        self.moved = time.monotonic()
        moves = self.mark["moves"] + 1
        self.mark |= {"step": trainer.global_step, "phase": phase, "moves": moves, "time": time.time()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "rank" in self.mark:  # a validation inside of a fit
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        pid, host, run = os.getpid(), socket.gethostname(), trainer.strategy.broadcast(uuid.uuid4().hex)
        self.mark |= {"run": run, "rank": trainer.global_rank, "host": host, "pid": pid, "started": process_start(pid)}
        self._progress(trainer, "start")
        self._write()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._progress(trainer, "training")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
        self._progress(trainer, "backward")  # where the others wait for one that is still in its forward pass

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._progress(trainer, "loading")

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._progress(trainer, "validation")

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._progress(trainer, "test")

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._progress(trainer, "predict")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._progress(trainer, "saving")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end.set()
        if self._thread:  # a run that came to its end leaves no mark: a second start of it then changes no byte
            self._thread.join(1)
            path = self._path(self.mark["rank"])
            with suppress(OSError):  # a disk that went away is no reason to fail a run that has ended
                path.unlink(missing_ok=True)
                path.with_suffix(".tmp").unlink(missing_ok=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end.set()

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _watch(self) -> None:
        pause = min(0.5, self.seconds / 4)
        while not self._end.wait(pause):
            self._write()
            if time.monotonic() - self.moved > self.seconds:
                self._finish()

    def _write(self) -> None:
        self.mark |= _standing(sys._current_frames().get(threading.main_thread().ident or 0))
        with suppress(OSError):  # a full disk is no reason to stop watching
            path = self._path(self.mark["rank"])
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.mark))
            temporary.replace(path)

    def _finish(self) -> None:
        marks = [self.mark, *self._others()]
        behind = min(marks, key=lambda mark: (mark["moves"], mark["in_collective"], mark["time"]))
        waited = time.time() - behind["time"]
        print(
            f"watchdog: no progress for {self.seconds:.0f} s: rank {behind['rank']} (process {behind['pid']} on "
            f"{behind['host']}) stands at step {behind['step']} in {behind['phase']} since {waited:.0f} s, "
            f"{behind['line']}; rank {self.mark['rank']} ends itself",
            file=sys.stderr,
            flush=True,
        )
        for mark in marks[1:]:
            stuck = time.time() - mark["time"] > self.seconds / 2  # it stopped about when this rank did
            if stuck and mark["host"] == self.mark["host"] and process_start(mark["pid"]) == mark["started"]:
                with suppress(ProcessLookupError):
                    os.kill(mark["pid"], signal.SIGKILL)
        os._exit(EXIT_STATUS)

    def _others(self) -> list[dict[str, Any]]:
        marks = []
        for path in sorted(self.folder.glob("rank-*.json")):
            with suppress(OSError, ValueError, KeyError):
                mark = json.loads(path.read_text())
                if mark["run"] == self.mark["run"] and mark["rank"] != self.mark["rank"]:
                    marks.append(mark)
        return marks


def remove_marks(root: Path) -> None:
    """Delete the marks of earlier runs, which may have had more ranks; before any rank of this one has its watchdog."""
    for path in (root / FOLDER).glob("rank-*"):
        path.unlink(missing_ok=True)


def _standing(frame: FrameType | None) -> dict[str, Any]:
    """The innermost line of a thread, and whether it waits for the other ranks there (it is not the culprit then)."""
    line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "?"
    collective = False
    while frame and not collective:
        collective = "/torch/distributed/" in frame.f_code.co_filename
        frame = frame.f_back
    return {"line": line, "in_collective": collective}
