"""Plain supervised fine-tuning: the baseline, with any set of trainable parameters."""

from typing import Any

from torch import Tensor

from ts_lightning.losses import scatter_to_rows, token_mean_loss, token_nll
from ts_lightning.training.base import BaseModule


class SFT(BaseModule):
    """Token loss: a row's loss is the mean over its answer tokens.

    What trains is the vlm's business: `PlainVLM(train=[...])` takes glob patterns of parameter names ("*" is full
    fine-tuning).
    """

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        output = self.vlm(batch)
        nll_N = token_nll(output["logits"], output["targets"])
        nll_BT = scatter_to_rows(nll_N, *output["positions"], *batch["step_ids"].shape)
        return {"loss": token_mean_loss(nll_BT, batch["step_ids"])}
