"""Log-probabilities of completions under a vlm, every prompt read once. Shapes: N completions, T steps, K tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ts_lightning.models.generate import banned_tokens
from ts_lightning.models.packing import branch_mask, pack_groups
from ts_lightning.models.vlm import VLM


class TokenScores(NamedTuple):
    """[N, T] log-probability of each token (with gradient), and the entropy it was drawn at; 0 behind the end."""

    logp_NT: Tensor
    entropy_NT: Tensor


def tempered(logits_KV: Tensor, temperature: float, banned: Sequence[int]) -> Tensor:
    """Log-probabilities [K, V], fp32, at a temperature and without banned tokens; nucleus sampling comes after."""
    logits_KV = logits_KV.index_fill(
        1, torch.tensor(list(banned), dtype=torch.long, device=logits_KV.device), -torch.inf
    )
    return (logits_KV.float() / temperature).log_softmax(-1)


def group_log_probs(
    vlm: VLM,
    batch: Mapping[str, Any],
    completions: Sequence[Sequence[Sequence[int]]],
    temperature: float = 1.0,
) -> TokenScores:
    """Score the completions of each prompt of `batch` (any padding side) in one forward.

    The prompt and its pictures are computed once a group; gradients flow through them. Equal to a forward over the
    prompt repeated for each completion. The completions of prompt b are rows b * G, b * G + 1 ... of the result.
    """
    packed = pack_groups(batch, completions, vlm.pad_id)
    with vlm.routing(packed) as context:
        hidden_BTH = vlm.backbone.decoder(
            inputs_embeds=vlm.embed(packed, context),
            attention_mask=branch_mask(packed["branch"]),
            position_ids=packed["position_ids"],
            use_cache=False,
        ).last_hidden_state
    rows_K = packed["rows"]
    logits_KV = vlm.logits(hidden_BTH[rows_K, packed["predictors"]], packed["task"][rows_K])
    logp_KV = tempered(logits_KV, temperature, banned_tokens(vlm))
    logp_K = logp_KV.gather(1, packed["targets"][:, None]).squeeze(1)
    with torch.no_grad():
        entropy_K = torch.special.entr(logp_KV.exp()).sum(-1)
    steps = max(len(tokens) for group in completions for tokens in group)
    grid_NT = logp_K.new_zeros(packed["num_completions"], steps)
    return TokenScores(*(torch.index_put(grid_NT, packed["places"], values) for values in (logp_K, entropy_K)))
