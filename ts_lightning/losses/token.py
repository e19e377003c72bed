"""Token losses. Shapes: N loss positions, V vocabulary, B rows, T tokens of a row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def token_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target token, in nats and fp32: -log P(t_i | ...) -> [N].

    logits_NV: [N, V] in any float type; targets_N: [N] token ids. A target whose logit is -inf gives inf.
    """
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def answer_nll(output: Mapping[str, Any], step_ids_BT: Tensor) -> Tensor:
    """`token_nll` of a vlm's output, each value in the place of its target: [B, T] with gradient, zeros elsewhere.

    output: `logits` [N, V], `targets` [N] and `positions` (rows, columns of the targets), as `vlm(batch)` returns them.
    """
    nll_N = token_nll(output["logits"], output["targets"])
    return torch.index_put(nll_N.new_zeros(step_ids_BT.shape), output["positions"], nll_N)
