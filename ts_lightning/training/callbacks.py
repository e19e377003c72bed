"""Callbacks: the position in the data, the training speed, and predictions as JSON lines."""

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class DataPosition(Callback):
    """Tell the datamodule that a global batch has been trained, before any checkpoint of this step is written."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        advance = getattr(trainer.datamodule, "advance", None)  # type: ignore[attr-defined]
        if advance is not None:
            advance()


class Throughput(Callback):
    """Log `train/samples_per_second` over all ranks, a mean over the last `window` steps, data loading included."""

    def __init__(self, window: int = 50) -> None:
        self.marks: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.marks.clear()

    on_validation_end = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.marks.append((time.perf_counter(), batch["num_rows"] * trainer.world_size))
        if len(self.marks) > 1:
            rows = sum(count for _, count in list(self.marks)[1:])
            seconds = self.marks[-1][0] - self.marks[0][0]
            pl_module.log("train/samples_per_second", rows / seconds, batch_size=1)


class PredictionWriter(Callback):
    """Write what `predict_step` returns to `predictions.jsonl` in `default_root_dir`, one line per question.

    With several ranks each writes its part, and rank 0 joins the parts in the order of suite, shard and key.
    """

    def __init__(self, filename: str = "predictions.jsonl") -> None:
        self.filename = filename

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self._part(trainer, trainer.global_rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.file.writelines(json.dumps(record) + "\n" for record in outputs)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.file.close()
        if trainer.world_size == 1:
            return
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
            lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines(keepends=True)]
            lines.sort(key=_place)
            self.path(trainer).write_text("".join(lines), encoding="utf-8")
            for part in parts:
                part.unlink()

    def path(self, trainer: L.Trainer) -> Path:
        """The finished file."""
        return Path(trainer.default_root_dir) / self.filename

    def _part(self, trainer: L.Trainer, rank: int) -> Path:
        path = self.path(trainer)
        return path if trainer.world_size == 1 else path.with_name(f".{path.name}.rank{rank}")


def _place(line: str) -> tuple[str, str, str]:
    record = json.loads(line)
    return record["suite"], record["shard"], record["key"]  # a line of our own, read back
