"""Losses: pure functions of plain tensors."""

from ts_lightning.losses.grpo import LOSS_TYPES, RATIOS, GRPOTerms, group_advantages, grpo_loss, grpo_terms
from ts_lightning.losses.load_balance import load_balance_loss
from ts_lightning.losses.rows import RowLoss, Stepwise, TokenMean
from ts_lightning.losses.stepwise import STEP_LOSS_MODES, num_loss_rows, stepwise_loss, token_mean_loss
from ts_lightning.losses.token import answer_nll, token_nll

__all__ = [
    "LOSS_TYPES",
    "RATIOS",
    "STEP_LOSS_MODES",
    "GRPOTerms",
    "RowLoss",
    "Stepwise",
    "TokenMean",
    "answer_nll",
    "group_advantages",
    "grpo_loss",
    "grpo_terms",
    "load_balance_loss",
    "num_loss_rows",
    "stepwise_loss",
    "token_mean_loss",
    "token_nll",
]
