"""Trainable rows of the token embedding and head, kept beside the frozen matrices. Legend: B T H V N as elsewhere."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenRows(nn.Module):
    """Deltas for the rows of existing tokens: they act in rows of a skill and are absent in understanding rows.

    `ids` are the tokens (R of them). With tied matrices one delta serves input and output.
    """

    ids: Tensor
    slot_V: Tensor

    def __init__(self, ids: list[int], vocab_size: int, hidden_size: int, tied: bool) -> None:
        super().__init__()
        if len(set(ids)) != len(ids):
            raise ValueError("train_token_rows: seen a token twice, expected different tokens")
        slot_V = torch.full((vocab_size,), -1)
        slot_V[ids] = torch.arange(len(ids))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.register_buffer("slot_V", slot_V, persistent=False)
        self.embed = nn.Parameter(torch.zeros(len(ids), hidden_size))
        self.output = None if tied else nn.Parameter(torch.zeros(len(ids), hidden_size))

    def add_embeddings(self, embeds_BTH: Tensor, ids_BT: Tensor, skill_BT: Tensor) -> Tensor:
        """Embeddings plus the deltas of the skill's tokens."""
        slot_BT = torch.where(skill_BT, self.slot_V[ids_BT], -1)
        delta_BTH = F.embedding(slot_BT.clamp(min=0), self.embed).to(embeds_BTH.dtype)
        return torch.where((slot_BT >= 0)[..., None], embeds_BTH + delta_BTH, embeds_BTH)

    def add_logits(self, logits_NV: Tensor, hidden_NH: Tensor, skill_N: Tensor) -> Tensor:
        """Logits plus the deltas' part in rows of the skill; other rows keep their bits."""
        rows_RH = self.embed if self.output is None else self.output
        delta_NR = F.linear(hidden_NH, rows_RH.to(hidden_NH.dtype)).to(logits_NV.dtype)
        changed_NV = logits_NV.index_add(1, self.ids, delta_NR)
        return torch.where(skill_N[:, None], changed_NV, logits_NV)
