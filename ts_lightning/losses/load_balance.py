"""The router regularisation R(g) of TWIST (its eq. 7 and 8). Shapes: T tokens, E experts, K choices, B rows."""

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balance_loss(router_probs_TE: Tensor, expert_ids_TK: Tensor, row_T: Tensor, num_rows: int) -> Tensor:
    """R(g) = E * sum_e f_e * p_e of each row, for one MoE layer -> [num_rows].

    router_probs_TE: softmax over the experts; expert_ids_TK: the experts that each token went to; row_T: the row of
    each token. The tokens are the valid ones only; a row without tokens gives 0.
    f_e is the share of the row's (token, choice) pairs that went to expert e (no gradient), p_e the mean probability
    of e over the row's tokens. A balanced router gives 1, a collapsed one E (K = 1). Layers are added by the caller.
    """
    num_experts = router_probs_TE.shape[1]
    probs_TE = router_probs_TE.float()
    num_tokens_B1 = probs_TE.new_zeros(num_rows).index_add_(0, row_T, probs_TE.new_ones(len(row_T))).unsqueeze(1)
    num_tokens_B1 = num_tokens_B1.clamp(min=1.0)
    mean_prob_BE = probs_TE.new_zeros(num_rows, num_experts).index_add(0, row_T, probs_TE) / num_tokens_B1
    pair_slot = row_T.unsqueeze(1) * num_experts + expert_ids_TK
    pairs = probs_TE.new_ones(pair_slot.numel())
    share_BE = probs_TE.new_zeros(num_rows * num_experts).index_add_(0, pair_slot.flatten(), pairs)
    share_BE = share_BE.view(num_rows, num_experts) / (num_tokens_B1 * expert_ids_TK.shape[1])
    return num_experts * (share_BE * mean_prob_BE).sum(dim=1)


def expert_load(routed_LE: Sequence[Tensor]) -> Tensor:
    """E * max_e n_e / sum_e n_e, the mean over layers: 1 where experts are chosen alike, E where one is always chosen.

    routed_LE: n_e, how often each layer's router chose each of its experts. A layer without a choice gives 0.
    """
    return torch.stack([len(n_E) * n_E.max() / n_E.sum().clamp(min=1) for n_E in routed_LE]).mean()
