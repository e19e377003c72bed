"""Which tokens each token of constrained completions was drawn among, read again from the completions themselves.

Shapes: N completions, S steps, M masks, L entries of them, K tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ts_lightning.data.sample import Sample
from ts_lightning.models.generate import constraint_of
from ts_lightning.models.vlm import VLM


@dataclass(frozen=True)
class Allowed:
    """Mask `number_NS` of each token; mask m is `begun_M` at its entries (mask, token), and the opposite elsewhere.

    In a begun box the entries are the few tokens that may follow, outside of one the few that may not; alike masks are
    one: some dozens where a digit is a token, thousands where three of them are.
    """

    number_NS: Tensor
    begun_M: Tensor
    mask_L: Tensor
    token_L: Tensor

    def rows(self, number_K: Tensor, vocabulary: int) -> Tensor:
        """Bool [K, V]: what may be drawn under masks `number_K`."""
        mask_U, own_K = number_K.unique(return_inverse=True)  # one row each: there may be thousands of masks
        place_M = torch.full_like(self.begun_M, -1, dtype=torch.long)
        place_M[mask_U] = torch.arange(len(mask_U), device=place_M.device)
        here_L = (place_M[self.mask_L] >= 0) & (self.token_L < vocabulary)  # a tokenizer may have more than the model
        mask_L, token_L = self.mask_L[here_L], self.token_L[here_L]
        allowed_UV = (~self.begun_M[mask_U])[:, None].repeat(1, vocabulary)
        allowed_UV[place_M[mask_L], token_L] = self.begun_M[mask_L]
        return allowed_UV[own_K]


def allowed_of(
    vlm: VLM,
    samples: Sequence[Sample],
    completions: Sequence[Sequence[Sequence[int]]],
    limit: int,
    device: torch.device | None = None,
) -> Allowed:
    """What the completions of each sample were drawn among by `sample_groups(constrain=True)` with this token limit.

    ValueError for completions that were drawn otherwise: of a checkpoint whose run went on with other settings.
    """
    vocabulary = max(len(vlm.tokenizer), 1 + max(max(ids) for group in completions for ids in group))
    constraint = constraint_of(vlm, samples, vocabulary, len(completions[0]))
    seen = dict[tuple[bool, tuple[int, ...]], int]()
    rows = [ids for group in completions for ids in group]
    numbers = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for n, ids in enumerate(rows):
        for step, token in enumerate(ids):
            begun, tokens = constraint.next_tokens(n, limit - step - 1)
            entries = tuple(tokens.tolist())
            if (token in entries) != begun:
                expected = f"expected one of a rollout with constrain and max_new_tokens {limit}, as it is now"
                raise ValueError(
                    f"constrain: seen a completion with token {step + 1} not among the allowed, {expected}"
                )
            numbers[n, step] = seen.setdefault((begun, entries), len(seen))
            constraint.read([token], [n])
    pairs = [(mask, token) for (_, entries), mask in seen.items() for token in entries]
    mask_L, token_L = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    begun_M = torch.tensor([begun for begun, _ in seen], device=device)
    return Allowed(numbers.to(device), begun_M, mask_L.to(device), token_L.to(device))
