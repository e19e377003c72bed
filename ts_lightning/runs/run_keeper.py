"""What a run needs to be continued exactly: its configuration, metrics, random numbers and position in every save."""

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ts_lightning.runs.metrics_log import FINISHED, MetricsLog
from ts_lightning.runs.position import between_steps, validation_to_come
from ts_lightning.runs.resume import Start, read_place, settle
from ts_lightning.runs.run_lock import RunLock


class RunKeeper(Callback):
    """Keeps lock, configuration and metrics in step with the checkpoints, and makes up for lost validations.

    A checkpoint says whether the validation of its last step is still to come. Then that runs first when the run goes
    on, also where no step is left. A run ends with `last.ckpt` at its last step: Lightning leaves out the steps behind
    the last multiple of `every_n_train_steps`. Rows of metrics are on the disk before the checkpoint of their step.
    Every step begins with its own seed, so that what draws from the global generators (a dropout, code of your own)
    draws the same after a restart.
    """

    def __init__(self, lock: RunLock, metrics: MetricsLog | None) -> None:
        self.lock, self.metrics = lock, metrics
        self.config: dict[str, Any] | None = None
        self.start: Start | None = None
        self.validation_follows: bool | None = False  # None: it may, which Lightning decides after the step's hooks
        self.last_validation: int | None = None  # the step of a run that has only its validation left
        self.is_due, self.max_steps = False, -1

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["validation_follows"] = self.validation_follows
        self.lock.check()
        if self.metrics is not None:
            if self.validation_follows is None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log_step(trainer)
            self.metrics.sync()

    def _log_step(self, trainer: L.Trainer) -> None:
        """The row that Lightning writes after the hooks of this step: a save among them comes before it."""
        assert self.metrics is not None
        row = {name: value for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
        if row:
            self.metrics.log_metrics({**row, "epoch": trainer.current_epoch}, trainer.global_step - 1)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not checkpoint.get("loops"):
            return
        total = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
        follows = stored = validation_to_come(checkpoint)
        if trainer.check_val_every_n_epoch is None and isinstance(trainer.val_check_interval, int):
            due = total["processed"] % trainer.val_check_interval == 0
            follows = due if stored is None else stored and due
        follows = follows if trainer.enable_validation else False
        epoch_ends = trainer.check_val_every_n_epoch is not None and trainer.val_check_interval == 1.0
        follows = between_steps(checkpoint, follows, trainer.check_val_every_n_epoch if epoch_ends else None)
        if stored is not False and checkpoint["global_step"] >= trainer.max_steps > 0:
            self.last_validation, self.is_due = checkpoint["global_step"], bool(follows)
            if trainer.strategy.restore_checkpoint_after_setup:
                self._admit_last_validation(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:  # the schedule has been made
            self._admit_last_validation(trainer)

    def _admit_last_validation(self, trainer: L.Trainer) -> None:
        """Lightning leaves at once when it sees no step to do: it sees one until the validation has ended."""
        if self.last_validation is not None:
            self.max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = self.last_validation + 1

    def _end_last_validation(self, trainer: L.Trainer) -> None:
        if self.last_validation is not None:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps
            self.last_validation = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.strategy.broadcast(trainer.global_step)
        if steps != trainer.global_step:
            raise ValueError(f"resume: seen step {trainer.global_step} on this rank, expected {steps} as on rank 0")
        if self.start is not None and trainer.is_global_zero:
            settle(self.start, self.lock.path.parent, self.metrics)
        trainer.strategy.barrier("run directory")
        if not self.is_due:
            self._end_last_validation(trainer)  # a step would follow in its place

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.validation_follows = False
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # which the loggers take for the step
        if "PL_GLOBAL_SEED" in os.environ:
            place = (int(os.environ["PL_GLOBAL_SEED"]), trainer.global_step, trainer.global_rank)
            seed = int(np.random.SeedSequence(place).generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.validation_follows = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_follows = not trainer.sanity_checking

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_follows = False
        if not trainer.sanity_checking:
            self._end_last_validation(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_follows = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        for saver in savers:
            if saver.last_model_path and _step_of(trainer, saver.last_model_path) != trainer.global_step:
                trainer.save_checkpoint(saver.last_model_path, saver.save_weights_only)
        if self.metrics is not None and self.config is not None:
            self.metrics.mark(FINISHED, trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.lock.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.lock.release()


def _step_of(trainer: L.Trainer, path: str) -> int:
    """The step of a checkpoint as rank 0 reads it; -1 of one that has none to be read, as a folder of shards."""
    step = -1
    if trainer.is_global_zero:
        with suppress(ValueError):
            step = read_place(Path(path)).steps
    return int(trainer.strategy.broadcast(step))
