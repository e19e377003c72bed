"""Checkpoints by step, the newest few of them, also over restarts."""

import re
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

_NAME = re.compile(r"step=(\d+)\.ckpt")


class SaveCheckpoints(Checkpoint):
    """Save `<default_root_dir>/checkpoints/step=<n>.ckpt` after every `every_n_steps` steps, keep the newest `keep`.

    What is kept is read from the folder, so nothing is forgotten there when a run is killed; Lightning's
    ModelCheckpoint with `save_top_k` loses track. The last step is always saved.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}: seen {value}, expected at least 1")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.saved = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step and self.saved != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / f"step={trainer.global_step}.ckpt", weights_only=False)
        self.saved = trainer.global_step
        if trainer.is_global_zero:
            steps = sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
            for step in [step for step in steps if step <= self.saved][: -self.keep]:
                trainer.strategy.remove_checkpoint(folder / f"step={step}.ckpt")

    def state_dict(self) -> dict[str, int]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.saved = state_dict["saved"]
