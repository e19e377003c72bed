"""Stopping on SIGTERM and SIGUSR1: the handler sets a flag, all ranks agree between steps, save, requeue and exit."""

import copy
import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FILENAME = "stopped.ckpt"


class Stopped(SystemExit):
    """The run was asked to stop and has saved; the exit status is 128 + signal, as a shell says it."""


class StopOnSignal(Callback):
    """Save `folder/stopped.ckpt` and exit when any rank was sent SIGTERM or SIGUSR1.

    SIGUSR1 (`#SBATCH --signal=USR1@120`, time is running out) also requeues the SLURM job. SIGTERM does not: it comes
    from `scancel`, or from a preemption, after which SLURM requeues by itself. Between two validation batches the
    state that is saved is the one before the validation, so that a resumed run begins it anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received = 0
        self.stopping = False
        self.loops: dict[str, Any] | None = None

    def install(self) -> None:
        """Set the handlers. They only set a flag: nothing is saved, sent or printed inside them."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `python -m ts_lightning` holds them back until now

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # python's last moments would die of it, with all work done

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            # Lightning's handlers save and broadcast inside the handler, where any rank may be in a collective.
            setattr(trainer._signal_connector, "register_signal_handlers", lambda: None)  # noqa: B010
            # behind ModelCheckpoint, whose save of this step counts too; Lightning declares no type for the list
            others = [callback for callback in getattr(trainer, "callbacks") if callback is not self]  # noqa: B009
            setattr(trainer, "callbacks", [*others, self])  # noqa: B010

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.loops = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
            for count in self.loops["fit_loop"]["epoch_loop.batch_progress"].values():
                if isinstance(count, dict):
                    count["completed"] = count["processed"] - 1

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.loops is not None:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.loops = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.loops is not None and self.stopping:  # ModelCheckpoint saves after a validation, and means it
            checkpoint["loops"] = self.loops

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        number = self.received
        if trainer.world_size > 1:
            asked = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if not number:
            return
        path, self.stopping = self.folder / FILENAME, True
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            print(f"{name}: saved {path} after step {trainer.global_step}, stopping", flush=True)
            if number == signal.SIGUSR1:
                requeue()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Stopped(128 + number)


def requeue() -> None:
    """Ask SLURM to run this job again; nothing outside of a job."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        said = "requeued" if done.returncode == 0 else f"not requeued ({done.stderr.strip()})"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"not requeued ({error})"
    print(f"job {job}: {said}", flush=True)
