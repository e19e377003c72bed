"""The stepwise loss of TWIST (its eq. 8). Shapes: B rows, T tokens of a row, S reasoning steps."""

import torch
from torch import Tensor

STEP_LOSS_MODES = ("sum", "step_mean")


def stepwise_loss(nll_BT: Tensor, step_ids_BT: Tensor, mode: str = "step_mean") -> Tensor:
    """Loss of each row, summed over its reasoning steps: [B, T] -> [B].

    nll_BT: token losses at their target tokens; step_ids_BT: step of each target, -1 = no loss (whatever nll holds
    there is ignored). A row without a target gives 0. The caller adds the rows and divides by their global number.

    TWIST eq. 8 is sum_j [-sum_i log P(t_i^(j) | v_1 ... v_m, t_1^(j) ... t_(i-1)^(j))] + lambda R(g) over steps j of
    N_j tokens i. Its first term is here
      sum:       sum_j sum_i nll_i^(j), ordinary cross-entropy summed over the row;
      step_mean: sum_j 1/N_j sum_i nll_i^(j), so that a long step does not drown a short one.
    What a token's nll is conditioned on is the forward's business: `vlm(batch, isolated=True)` hides other steps.
    """
    if mode not in STEP_LOSS_MODES:
        raise ValueError(f"step_loss: seen {mode!r}, expected one of {', '.join(STEP_LOSS_MODES)}")
    has_loss_BT = step_ids_BT >= 0
    nll_BT = nll_BT.float().masked_fill(~has_loss_BT, 0.0)
    if mode == "sum":
        return nll_BT.sum(dim=1)
    slot_BT = step_ids_BT.clamp(min=0)
    num_steps = int(slot_BT.max()) + 1 if slot_BT.numel() else 1
    length_BS = nll_BT.new_zeros(nll_BT.shape[0], num_steps).scatter_add_(1, slot_BT, has_loss_BT.to(nll_BT.dtype))
    return (nll_BT / length_BS.clamp(min=1.0).gather(1, slot_BT)).sum(dim=1)


def token_mean_loss(nll_BT: Tensor, step_ids_BT: Tensor) -> Tensor:
    """Loss of each row for plain tuning: the mean over its target tokens, [B, T] -> [B] (0 without a target)."""
    num_targets_B = (step_ids_BT >= 0).sum(dim=1).clamp(min=1)
    return stepwise_loss(nll_BT, step_ids_BT, mode="sum") / num_targets_B


def num_loss_rows(step_ids_BT: Tensor) -> Tensor:
    """Number of rows with at least one target token, as an integer scalar: the divisor of a batch's loss."""
    return torch.count_nonzero((step_ids_BT >= 0).any(dim=1))
