"""What `SFT(loss=...)` takes: from a vlm's output to the loss of each row. Shapes: B rows, T tokens of a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ts_lightning.losses.load_balance import load_balance_loss
from ts_lightning.losses.stepwise import STEP_LOSS_MODES, stepwise_loss, token_mean_loss
from ts_lightning.losses.token import answer_nll


class RowLoss:
    """A loss of your own is a dataclass with this base; a YAML names it by `class_path`, its fields are `init_args`.

    `isolated`: the forward hides the other steps of an answer from each step (`VLM.forward`).
    """

    isolated: bool = False

    def __call__(self, output: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss of each row, [B] with gradient under "loss"; other [B] entries are parts of it, for the logs.

        output: what `vlm(batch)` returned. The module adds the rows up and divides by the rows with a loss token in the
        global batch (all ranks, all micro-batches).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TokenMean(RowLoss):
    """The mean over a row's answer tokens."""

    def __call__(self, output: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": token_mean_loss(answer_nll(output, batch["step_ids"]), batch["step_ids"])}


@dataclass(frozen=True)
class Stepwise(RowLoss):
    """TWIST eq. 8: sum_j [-sum_i log P(t_i^(j) | v_1 ... v_m, t_1^(j) ... t_(i-1)^(j))] + balance_coeff * R(g).

    step_loss: "sum" or "step_mean" (`stepwise_loss`). isolated: a step is conditioned on image and question only, as
    the equation is printed. R(g) is added up over the MoE layers with trainable routers; None leaves it out.
    first_choice: R(g) counts each token's first expert alone, as DeepSpeed's does.
    """

    step_loss: str = "step_mean"
    balance_coeff: float | None = None
    isolated: bool = False
    first_choice: bool = False

    def __post_init__(self) -> None:
        if self.step_loss not in STEP_LOSS_MODES:
            raise ValueError(f"step_loss: seen {self.step_loss!r}, expected one of {', '.join(STEP_LOSS_MODES)}")

    def __call__(self, output: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        step_ids_BT = batch["step_ids"]
        steps_B = stepwise_loss(answer_nll(output, step_ids_BT), step_ids_BT, self.step_loss)
        if self.balance_coeff is None:
            return {"loss": steps_B}
        balance_B = torch.zeros_like(steps_B)
        for probs_TE, ids_TK, row_T in zip(output["router_probs"], output["expert_ids"], output["rows"], strict=True):
            counted = ids_TK[:, :1] if self.first_choice else ids_TK
            balance_B = balance_B + load_balance_loss(probs_TE, counted, row_T, len(steps_B))
        balance_B = balance_B * (step_ids_BT >= 0).any(dim=1)  # of rows that count
        return {"loss": steps_B + self.balance_coeff * balance_B, "steps": steps_B, "balance": balance_B}
