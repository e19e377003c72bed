"""Rows of the token embedding and head that a package brings. Legend: B T H V N as elsewhere, R rows of tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenRows(nn.Module):
    """Deltas for the rows of existing tokens, and whole rows for tokens that the base's matrices do not have.

    `ids` are the tokens; those from `vocab_size` on are new, the others exist. The rows act where the package answers:
    elsewhere an existing token is as in the base, and a new one can't be said (its logit is -inf). With tied matrices
    one row serves input and output.
    """

    ids: Tensor
    slot_V: Tensor

    def __init__(self, ids: Sequence[int], vocab_size: int, hidden_size: int, tied: bool) -> None:
        super().__init__()
        if len(set(ids)) != len(ids):
            raise ValueError("train_token_rows: seen a token twice, expected different tokens")
        self.added = max(0, max(ids) + 1 - vocab_size)
        slot_V = torch.full((vocab_size + self.added,), -1)
        slot_V[list(ids)] = torch.arange(len(ids))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.register_buffer("slot_V", slot_V, persistent=False)
        self.embed = nn.Parameter(torch.zeros(len(ids), hidden_size))
        self.output = None if tied else nn.Parameter(torch.zeros(len(ids), hidden_size))

    @torch.no_grad()
    def start_from(self, pieces: Sequence[Sequence[int]], embedding: Tensor, head: Tensor) -> None:
        """Start each new token's rows at the mean of the base's rows of the `pieces` that spell it."""
        new = [row for row, token in enumerate(self.ids.tolist()) if token >= len(self.slot_V) - self.added]
        for row, ids in zip(new, pieces, strict=True):
            self.embed[row] = embedding[list(ids)].float().mean(0)
            if self.output is not None:
                self.output[row] = head[list(ids)].float().mean(0)

    def add_embeddings(self, embeds_BTH: Tensor, ids_BT: Tensor, rows_BT: Tensor) -> Tensor:
        """Embeddings plus these rows where the package answers (`rows_BT` True)."""
        slot_BT = torch.where(rows_BT, self.slot_V[ids_BT.clamp(max=len(self.slot_V) - 1)], -1)
        delta_BTH = F.embedding(slot_BT.clamp(min=0), self.embed).to(embeds_BTH.dtype)
        return torch.where((slot_BT >= 0)[..., None], embeds_BTH + delta_BTH, embeds_BTH)

    def add_logits(self, logits_NV: Tensor, hidden_NH: Tensor, rows_N: Tensor) -> Tensor:
        """Logits plus these rows' part where the package answers; other rows keep their bits.

        Columns of new tokens have to be there, at -inf.
        """
        rows_RH = self.embed if self.output is None else self.output
        delta_NR = F.linear(hidden_NH, rows_RH.to(hidden_NH.dtype)).to(logits_NV.dtype)
        new_R = self.ids >= len(self.slot_V) - self.added
        base_NR = torch.where(new_R, 0, logits_NV[:, self.ids])
        changed_NV = logits_NV.index_copy(1, self.ids, base_NR + delta_NR)
        return torch.where(rows_N[:, None], changed_NV, logits_NV)
