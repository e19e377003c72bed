"""Checkpoints by step, the newest few of them, also over restarts."""

import re
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

_NAME = re.compile(r"step=(\d+)\.ckpt")


class SaveCheckpoints(Checkpoint):
    """Save `<default_root_dir>/checkpoints/step=<n>.ckpt` after every `every_n_steps` steps, keep the newest `keep`.

    A step is saved before the validation that follows it, which may be long. What is kept is read from the folder, so
    nothing is forgotten there when a run is killed; Lightning's ModelCheckpoint with `save_top_k` loses track. The
    last step is always saved.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}: seen {value}, expected at least 1")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.saved = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_due(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._save_if_due(trainer)  # a step without a validation: its metrics are complete now

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and self.saved != trainer.global_step:
            self._save(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        is_last = 0 < trainer.max_steps <= step
        if step and self.saved != step and (step % self.every_n_steps == 0 or is_last):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        self.saved = trainer.global_step  # it is saved too: a run that goes on from here has this one
        trainer.save_checkpoint(folder / f"step={self.saved}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            steps = sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
            for step in [step for step in steps if step <= self.saved][: -self.keep]:
                trainer.strategy.remove_checkpoint(folder / f"step={step}.ckpt")

    def state_dict(self) -> dict[str, int]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.saved = state_dict["saved"]
