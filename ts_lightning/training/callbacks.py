"""Callbacks: the position in the data, the training speed, and predictions as JSON lines."""

import json
import os
import resource
import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ts_lightning.models.flops import step_flops

COUNTED = ("questions", "tokens", "positions", "pairs", "answers")  # of this rank's share of a batch


class DataPosition(Callback):
    """Tell the datamodule that a global batch has been trained, before any checkpoint of this step is written."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        advance = getattr(trainer.datamodule, "advance", None)  # type: ignore[attr-defined]
        if advance is not None:
            advance()


class Throughput(Callback):
    """Log speed and what it is spent on, means over the last `window` steps, data loading included.

    `train/samples_per_second` over all ranks; `train/tokens_per_second` (real tokens, those of the answers and
    pictures included) as if every rank had this one's; `train/pad_share`, the share of this rank's positions that is
    padding; `train/peak_memory_gib` of this rank so far: of its device, or of its process on a CPU.
    `train/tflops_per_second` of this rank: what the model needs (`models.flops`), not where it trains on prompts. With
    the device's peak in TFLOP/s, `peak_tflops`, also the share of it, `train/mfu`.
    """

    def __init__(self, window: int = 50, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"peak_tflops: seen {peak_tflops}, expected more than 0")
        self.marks: deque[tuple[float, ...]] = deque(maxlen=window + 1)
        self.peak_tflops = peak_tflops

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.flops = None if getattr(pl_module, "trains_on_prompts", False) else step_flops(pl_module.vlm)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.marks.clear()

    on_validation_end = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.marks.append((time.perf_counter(), *(batch[f"num_{name}"] for name in COUNTED)))
        if len(self.marks) < 2:
            return
        rows, tokens, positions, pairs, answers = (
            int(sum(counts)) for counts in list(zip(*list(self.marks)[1:], strict=True))[1:]
        )
        seconds = self.marks[-1][0] - self.marks[0][0]
        ranks_a_second = trainer.world_size / seconds
        figures = {
            "samples_per_second": rows * ranks_a_second,
            "tokens_per_second": tokens * ranks_a_second,
            "pad_share": 1 - tokens / positions,
            "peak_memory_gib": peak_memory(pl_module.device) / 2**30,
        }
        if self.flops is not None:
            figures["tflops_per_second"] = self.flops.of_step(tokens, pairs, answers) / seconds / 1e12
            if self.peak_tflops is not None:
                figures["mfu"] = figures["tflops_per_second"] / self.peak_tflops
        pl_module.log_dict({f"train/{name}": value for name, value in figures.items()}, batch_size=1)


def peak_memory(device: torch.device) -> int:
    """Most bytes that were held so far: allocated on a CUDA device, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


class PredictionWriter(Callback):
    """Write what `predict_step` returns to `predictions.jsonl` in `default_root_dir`, one line per question.

    Each rank writes its part, `.predictions.jsonl.rank0` and so on; an earlier file is replaced when all is answered.
    Of several ranks rank 0 joins the parts in the order of suite, shard and key; no rank goes on before the file is
    whole. SIGTERM ends it behind a batch.
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
        if trainer.received_sigterm:  # Lightning's loop asks in every other command
            self.file.close()
            raise SIGTERMException

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.file.close()
        if trainer.world_size == 1:
            os.replace(self._part(trainer, 0), self.path(trainer))
            return
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
            lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines(keepends=True)]
            lines.sort(key=_place)
            joined = self.path(trainer).with_name(f".{self.filename}.joined")
            joined.write_text("".join(lines), encoding="utf-8")
            os.replace(joined, self.path(trainer))
            for part in parts:
                part.unlink()
        trainer.strategy.barrier("joined predictions")

    def path(self, trainer: L.Trainer) -> Path:
        """The finished file."""
        return Path(trainer.default_root_dir) / self.filename

    def _part(self, trainer: L.Trainer, rank: int) -> Path:
        path = self.path(trainer)
        return path.with_name(f".{path.name}.rank{rank}")


def _place(line: str) -> tuple[str, str, str]:
    record = json.loads(line)
    return record["suite"], record["shard"], record["key"]  # a line of our own, read back
