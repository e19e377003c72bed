"""The LoRA baseline: the same data, loss and scores as TWIST."""

from typing import Any

import torch
from torch import Tensor

from ts_lightning.losses import Stepwise
from ts_lightning.models.lora import LoRAVLM
from ts_lightning.training.base import BaseModule


class LoRASFT(BaseModule):
    """`StepwiseSFT` without the routers' balance loss: a frozen router has nothing to balance.

    The adapters' dropout is drawn from (step, rank) alone, so that a resumed run drops the same entries.

    Args:
        vlm: What trains.
        step_loss: As in `StepwiseSFT`.
        isolated: As in `StepwiseSFT`.
        kwargs: As in `BaseModule`.
    """

    def __init__(self, vlm: LoRAVLM, step_loss: str = "step_mean", isolated: bool = False, **kwargs: Any) -> None:
        if step_loss == "isolated":  # as checkpoints of earlier versions have it
            step_loss, isolated = "sum", True
        loss = Stepwise(step_loss, isolated=isolated)
        super().__init__(vlm, **kwargs)
        self.loss = loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(1_000_003 * self.global_step + self.global_rank)
            return super().training_step(batch, batch_idx)
