"""Several conversations behind one shared prefix: the picture is read once, each branch sees the prefix and itself.

Legend: B rows, T positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PAD_BRANCH = -1


def pack_row(prefix: Sequence[int], branches: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, list[int]]:
    """One row of token ids: the prefix (branch 0), then (prompt, answer) branches 1, 2 ... with restarted positions.

    `targets` marks the tokens of the answers.
    """
    row = {
        "input_ids": list(prefix),
        "position_ids": list(range(len(prefix))),
        "branch": [0] * len(prefix),
        "targets": [0] * len(prefix),
    }
    for number, (prompt, answer) in enumerate(branches, start=1):
        length = len(prompt) + len(answer)
        row["input_ids"] += [*prompt, *answer]
        row["position_ids"] += range(len(prefix), len(prefix) + length)
        row["branch"] += [number] * length
        row["targets"] += [0] * len(prompt) + [1] * len(answer)
    return row


def pad_rows(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded [B, T] tensors of packed rows; `valid` is bool."""
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id, "position_ids": 0, "branch": PAD_BRANCH, "targets": 0}
    batch = {
        name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    batch["valid"] = batch["branch"] != PAD_BRANCH
    return batch


def branch_mask(query_BQ: Tensor, key_BK: Tensor | None = None) -> Tensor:
    """Bool [B, 1, Q, K], True = may look: causal, to the prefix (branch 0) and to the own branch.

    The queries are the last Q of the K positions (all of them by default). Padding (branch -1) sees padding alone, so
    that no row of the mask is empty.
    """
    key_BK = query_BQ if key_BK is None else key_BK
    queries, keys = query_BQ.shape[1], key_BK.shape[1]
    causal_QK = torch.ones(queries, keys, dtype=torch.bool, device=key_BK.device).tril(keys - queries)
    query, key = query_BQ[:, :, None], key_BK[:, None, :]
    return (causal_QK & ((key == query) | ((key == 0) & (query != PAD_BRANCH))))[:, None]
