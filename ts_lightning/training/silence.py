"""A run that learns nothing says so at once."""

from collections import Counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.runs.zero2 import ZeRO2Strategy

STEPS = 10


class StopWithoutGradient(Callback):
    """ValueError in one line where no parameter had a gradient above 0 in the first `STEPS` steps of a run.

    So it is where the records have another task than the package that trains, or no row has a target. On one device:
    ranks hold parts of the gradients.
    """

    def __init__(self) -> None:
        self.steps: int | None = 0  # None: there was one
        self.tasks: Counter[int] = Counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.steps is not None:
            for micro in batch["micro_batches"]:
                self.tasks.update(micro["task"].tolist())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self.steps is None or trainer.world_size > 1:
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if isinstance(trainer.strategy, ZeRO2Strategy):
            gradients += trainer.strategy.gradients()
        if any(bool(gradient.any()) for gradient in gradients):
            self.steps = None
            return
        self.steps += 1
        if self.steps == STEPS:
            vlm: Any = pl_module.vlm
            names = (UNDERSTANDING, *vlm.skills)
            rows = ", ".join(f"{self.tasks[i]} {name}" for i, name in enumerate(names))
            raise ValueError(
                f"fit: seen no gradient above 0 in the first {STEPS} steps (rows: {rows}), expected rows that train: "
                "records of the package's task (boxes in a LLaVA file's texts: ts-lightning data convert llava --codec)"
            )
