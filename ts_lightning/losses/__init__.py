"""Losses: pure functions of plain tensors."""

from ts_lightning.losses.grpo import (
    BNPO,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    MIRG,
    SAPO,
    Algorithm,
    DrGRPO,
    GRPOTerms,
    group_advantages,
    grpo_loss,
)
from ts_lightning.losses.load_balance import expert_load, load_balance_loss
from ts_lightning.losses.rows import RowLoss, Stepwise, TokenMean
from ts_lightning.losses.stepwise import STEP_LOSS_MODES, num_loss_rows, stepwise_loss, token_mean_loss
from ts_lightning.losses.token import answer_nll, token_nll

__all__ = [
    "BNPO",
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "MIRG",
    "SAPO",
    "STEP_LOSS_MODES",
    "Algorithm",
    "DrGRPO",
    "GRPOTerms",
    "RowLoss",
    "Stepwise",
    "TokenMean",
    "answer_nll",
    "expert_load",
    "group_advantages",
    "grpo_loss",
    "load_balance_loss",
    "num_loss_rows",
    "stepwise_loss",
    "token_mean_loss",
    "token_nll",
]
