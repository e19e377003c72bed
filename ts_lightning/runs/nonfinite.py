"""Steps with NaN or Inf gradients are skipped by all ranks, counted, and end the run when they do not stop."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ts_lightning.models.ranks import of_all
from ts_lightning.models.sharding import total_norm
from ts_lightning.runs.zero2 import ZeRO2Strategy

log = logging.getLogger("ts_lightning.training")
LISTED = 20


class SkipNonFinite(Callback):
    """Drop all gradients of a step in which one of them, or a row's loss, is NaN or Inf on any rank.

    Without gradients an optimizer changes neither weights nor its own state, bit for bit; the schedule and the
    position in the data move on. `train/skipped_steps` counts. After `limit` such steps in a row the run stops with
    the keys of the samples whose loss was not finite (of the whole batch where every loss was).
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.skipped = self.in_a_row = 0
        self.batch: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        elsewhere = trainer.strategy.gradients() if isinstance(trainer.strategy, ZeRO2Strategy) else []
        norm = total_norm([p.grad for p in parameters if p.grad is not None] + elsewhere)
        losses = [losses_B.sum() for _, losses_B in getattr(pl_module, "row_record", [])]
        bad = (~torch.isfinite(torch.stack([norm, *losses]).sum())).float()
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad.to(trainer.strategy.root_device), reduce_op="sum")
        if bad > 0:
            for parameter in parameters:
                parameter.grad = None
            for gradient in elsewhere:
                gradient.fill_(float("nan"))  # what DeepSpeed skips a step for
            self.skipped += 1
            self.in_a_row += 1
            self._report(trainer, pl_module)
        else:
            self.in_a_row = 0
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = of_all(_keys(pl_module, self.batch))
        suspects = list(dict.fromkeys(k for bad, _ in parts for k in bad)) or [k for _, every in parts for k in every]
        more = ", ..." if len(suspects) > LISTED else ""
        named = ", ".join(suspects[:LISTED])
        text = f"seen NaN or Inf in the loss or the gradients of step {trainer.global_step} (samples {named}"
        if trainer.is_global_zero:
            log.warning("%s%s): step skipped by all ranks, %d so far", text, more, self.skipped)
        if self.in_a_row >= self.limit:
            raise ValueError(f"training: {text}{more}), {self.in_a_row} steps in a row, expected finite ones")

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _keys(pl_module: L.LightningModule, batch: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(keys of this rank's rows whose loss is not finite, keys of all its rows)."""
    bad = []
    for samples, losses_B in getattr(pl_module, "row_record", []):
        per_sample = len(losses_B) // len(samples)  # GRPO has several completions of each
        bad += [samples[i // per_sample].where for i in (~torch.isfinite(losses_B)).nonzero().flatten().tolist()]
    return bad, [sample.where for micro in batch.get("micro_batches", []) for sample in micro["samples"]]
