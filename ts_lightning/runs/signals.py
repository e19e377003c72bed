"""Stopping on SIGTERM and SIGUSR1: the handler sets a flag, all ranks agree between steps, save, requeue and exit."""

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
    from `scancel`, or from a preemption, after which SLURM requeues by itself. What is saved is a moment between two
    steps; a validation that was cut off begins anew when the run goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received = 0

    def install(self) -> None:
        """Set the handlers. They only set a flag: nothing is saved, sent or printed inside them."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # `python -m ts_lightning` holds them back until now

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.install()  # in place of Lightning's, which save and broadcast where any rank may be in a collective

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # python's last moments would die of it, with all work done

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        number = self.received
        if trainer.world_size > 1:
            asked = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(asked, reduce_op="max"))
        if not number:
            return
        path = self.folder / FILENAME
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            print(f"{name}: saved {path} after step {trainer.global_step}, stopping", flush=True)
            if number == signal.SIGUSR1:
                requeue()
        trainer.strategy.barrier("requeued")  # a rank that ends first has srun kill the others, and rank 0's scontrol
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
