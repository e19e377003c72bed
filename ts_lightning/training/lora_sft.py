"""The LoRA baseline: the same data, loss and scores as TWIST. Shapes: B rows, T tokens, N loss positions."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ts_lightning.losses import STEP_LOSS_MODES, scatter_to_rows, stepwise_loss, token_nll
from ts_lightning.models.lora import LoRAVLM
from ts_lightning.training.base import BaseModule
from ts_lightning.training.schedule import WarmupCosine


class LoRASFT(BaseModule):
    """Eq. 8 without the routers' balance loss: a frozen router has nothing to balance.

    step_loss: "sum", "step_mean" or "isolated", as in `StepwiseSFT`. The adapters' dropout is drawn from (step, rank)
    alone, so that a resumed run drops the same entries.
    """

    def __init__(
        self,
        vlm: LoRAVLM,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = WarmupCosine,
        alpha_lr_factor: float = 1.0,
        max_new_tokens: int = 64,
        step_loss: str = "step_mean",
    ) -> None:
        if step_loss not in STEP_LOSS_MODES:
            raise ValueError(f"step_loss: seen {step_loss!r}, expected one of {', '.join(STEP_LOSS_MODES)}")
        super().__init__(vlm, optimizer, lr_scheduler, alpha_lr_factor, max_new_tokens)
        self.step_loss = step_loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(1_000_003 * self.global_step + self.global_rank)
            return super().training_step(batch, batch_idx)

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        output = self.vlm(batch, isolated=self.step_loss == "isolated")
        nll_N = token_nll(output["logits"], output["targets"])
        nll_BT = scatter_to_rows(nll_N, *output["positions"], *batch["step_ids"].shape)
        return {"loss": stepwise_loss(nll_BT, batch["step_ids"], self.step_loss)}
