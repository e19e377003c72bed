"""TWIST: stepwise fine-tuning of a twin-expert vlm. Shapes: B rows, T tokens, N loss positions."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ts_lightning.losses import STEP_LOSS_MODES, load_balance_loss, scatter_to_rows, stepwise_loss, token_nll
from ts_lightning.models.vlm import VLM
from ts_lightning.training.base import BaseModule
from ts_lightning.training.schedule import WarmupCosine


class StepwiseSFT(BaseModule):
    """Eq. 8: a row's loss is the sum over its steps, plus `balance_coeff` times the routers' balance loss R(g).

    step_loss: "sum" (ordinary cross-entropy over the row), "step_mean" (each step by its own length) or "isolated" (a
    step sees image, question and itself only). R(g) is summed over the MoE layers with trainable routers.
    """

    def __init__(
        self,
        vlm: VLM,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = WarmupCosine,
        alpha_lr_factor: float = 1.0,
        max_new_tokens: int = 64,
        step_loss: str = "step_mean",
        balance_coeff: float = 0.01,
    ) -> None:
        if step_loss not in STEP_LOSS_MODES:
            raise ValueError(f"step_loss: seen {step_loss!r}, expected one of {', '.join(STEP_LOSS_MODES)}")
        super().__init__(vlm, optimizer, lr_scheduler, alpha_lr_factor, max_new_tokens)
        self.step_loss, self.balance_coeff = step_loss, balance_coeff

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        output = self.vlm(batch, isolated=self.step_loss == "isolated")
        step_ids_BT = batch["step_ids"]
        nll_N = token_nll(output["logits"], output["targets"])
        nll_BT = scatter_to_rows(nll_N, *output["positions"], *step_ids_BT.shape)
        steps_B = stepwise_loss(nll_BT, step_ids_BT, self.step_loss)
        balance_B = self._balance(output, len(steps_B)) * (step_ids_BT >= 0).any(dim=1)
        return {"loss": steps_B + self.balance_coeff * balance_B, "steps": steps_B, "balance": balance_B}

    def _balance(self, output: dict[str, Any], num_rows: int) -> Tensor:
        total_B = output["logits"].new_zeros(num_rows, dtype=torch.float32)
        for probs_TE, ids_TK, row_T in zip(output["router_probs"], output["expert_ids"], output["rows"], strict=True):
            total_B = total_B + load_balance_loss(probs_TE, ids_TK, row_T, num_rows)
        return total_B
