"""Token losses. Shapes: N loss positions, V vocabulary, B rows, T tokens of a row."""

import torch
from torch import Tensor
from torch.nn import functional as F


def token_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target token, in nats and fp32: -log P(t_i | ...) -> [N].

    logits_NV: [N, V] in any float type; targets_N: [N] token ids. A target whose logit is -inf gives inf.
    """
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def scatter_to_rows(values_N: Tensor, row_N: Tensor, col_N: Tensor, num_rows: int, num_cols: int) -> Tensor:
    """Put per-position values back on the grid of the batch: [N] -> [num_rows, num_cols], zeros elsewhere.

    row_N, col_N: the row and the column of each value (for a token loss: of the target token).
    """
    grid = values_N.new_zeros(num_rows, num_cols)
    return torch.index_put(grid, (row_N, col_N), values_N)
