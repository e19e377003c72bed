"""What a run needs to be continued exactly: its configuration and metrics in step with every checkpoint."""

from typing import Any

import lightning as L
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Callback

from ts_lightning.runs.metrics_csv import MetricsCSV
from ts_lightning.runs.run_lock import RunLock


class RunKeeper(Callback):
    """Keeps lock, configuration and metrics.csv in step with the checkpoints, and makes up for lost validations.

    Lightning writes a step's metrics after its checkpoint, and skips the validation of the step that a run is resumed
    from. Here the row is on disk before the checkpoint, and that validation runs first.
    """

    def __init__(self) -> None:
        self.lock: RunLock | None = None  # rank 0 of `fit` has one
        self.config: dict[str, Any] | None = None
        self.epoch = 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        if self.lock is not None:
            self.lock.check()
            _flush_metrics(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.epoch = checkpoint["epoch"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.lock = self.lock

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.strategy.broadcast(trainer.global_step)
        if steps != trainer.global_step:
            raise ValueError(f"resume: seen step {trainer.global_step} on this rank, expected {steps} as on rank 0")
        loop = trainer.fit_loop.epoch_loop
        if not (loop.restarting and _before_validation(trainer)):
            return
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            epoch: Any = trainer.fit_loop.epoch_progress.current
            loop.val_loop.restarting = False
            now, epoch.completed = epoch.completed, self.epoch  # at an epoch's end Lightning has begun the next one
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True
            epoch.completed = now

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release(trainer)

    def _release(self, trainer: L.Trainer) -> None:
        if self.lock is None or not self.lock.release():
            return
        for logger in trainer.loggers:  # Lightning writes once more at the very end
            if isinstance(logger, MetricsCSV):
                logger.lock = None


def _before_validation(trainer: L.Trainer) -> bool:
    """Whether the last step's hooks (and a checkpoint in them) came before its metrics and validation."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return bool(total.completed < total.processed)


def _flush_metrics(trainer: L.Trainer) -> None:
    """Write every row up to this step; Lightning's own, later row of this step is then left out."""
    connector = trainer._logger_connector
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            if trainer.training and _before_validation(trainer) and connector.should_update_logs:
                row = convert_tensors_to_scalars(connector.metrics["log"])
                row.setdefault("epoch", trainer.current_epoch)
                if len(row) > 1:
                    logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
            logger.save()
            logger.sync()
