"""Log-probabilities of completions under a vlm, every prompt read once. Shapes: N completions, T steps, K tokens."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ts_lightning.models.generate import banned_tokens
from ts_lightning.models.packing import pack_groups, repeated
from ts_lightning.models.routing import Routing
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.allowed import Allowed

COLDEST = 1e-6  # a lower temperature draws the likeliest token as well, and its logits may leave what a float holds
CHUNK = 1024  # tokens whose logits exist at a time: those of a whole group would outweigh the model's activations


class TokenScores(NamedTuple):
    """[N, T] log-probability of each token (with gradient), and the entropy it was drawn at; 0 behind the end.

    `expert_ids` are the choices of each trainable router. Entropies are 0, and there are no choices, where they were
    not asked for.
    """

    logp_NT: Tensor
    entropy_NT: Tensor
    expert_ids: Sequence[Tensor] = ()


def tempered(logits_KV: Tensor, temperature: float, banned: Sequence[int]) -> Tensor:
    """Log-probabilities [K, V], fp32, at a temperature and without banned tokens; nucleus sampling comes after."""
    logits_KV = logits_KV.index_fill(
        1, torch.tensor(list(banned), dtype=torch.long, device=logits_KV.device), -torch.inf
    )
    return (logits_KV.float() / max(temperature, COLDEST)).log_softmax(-1)


def group_log_probs(
    vlm: VLM,
    batch: Mapping[str, Any],
    completions: Sequence[Sequence[Sequence[int]]],
    temperature: float = 1.0,
    package: str | None = None,
    watched: bool = True,
    allowed: Allowed | None = None,
) -> TokenScores:
    """Score the completions of each prompt of `batch` (any padding side) in one forward; `package` as in `VLM.routing`.

    The prompt and its pictures are computed once a group, where the model's layers can branch; gradients flow through
    them. Equal to a forward over the prompt repeated for each completion. The completions of prompt b are rows b * G,
    b * G + 1 ... of the result. watched: with what is for the logs alone, entropies and experts' choices. allowed: what
    each token was drawn among (None: all).
    """
    if not vlm.backbone.branches:
        batch = repeated(batch, len(completions[0]))
        completions = [[completion] for group in completions for completion in group]
    packed = pack_groups(batch, completions, vlm.pad_id)
    with vlm.routing(packed, watched, package) as context:
        hidden_BTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(packed, context),
            attention_mask=vlm.mask(packed["branch"], packed),
            position_ids=packed["position_ids"],
            use_cache=False,
        ).last_hidden_state
    rows_K = packed["rows"]
    hidden_KH, task_K = hidden_BTH[rows_K, packed["predictors"]], packed["task"][rows_K]
    number_K = packed["targets"] if allowed is None else allowed.number_NS[packed["places"]]
    parts = [part.split(CHUNK) for part in (hidden_KH, task_K, packed["targets"], number_K)]
    scored = []
    for hidden_CH, task_C, targets_C, number_C in zip(*parts, strict=True):
        among = None if allowed is None else partial(allowed.rows, number_C)
        chunk = hidden_CH, task_C, context, targets_C, temperature, watched, among
        if len(parts[0]) > 1 and torch.is_grad_enabled():
            scored.append(checkpoint(_score, vlm, *chunk, use_reentrant=False))
        else:
            scored.append(_score(vlm, *chunk))
    logp_K, entropy_K = (torch.cat(values) for values in zip(*scored, strict=True))
    steps = max(len(tokens) for group in completions for tokens in group)
    grid_NT = logp_K.new_zeros(packed["num_completions"], steps)
    logp_NT, entropy_NT = (torch.index_put(grid_NT, packed["places"], values) for values in (logp_K, entropy_K))
    return TokenScores(logp_NT, entropy_NT, [routed.ids_NK for routed in context.of_trained()])


def _score(
    vlm: VLM,
    hidden_CH: Tensor,
    task_C: Tensor,
    context: Routing,
    targets_C: Tensor,
    temperature: float,
    entropy: bool,
    among: Callable[[int], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of some tokens; `among` makes bool [C, V] of a V."""
    logits_CV = vlm.logits(hidden_CH, task_C, context)
    if among is not None:
        logits_CV = logits_CV.masked_fill(~among(logits_CV.shape[1]), -torch.inf)
    logp_CV = tempered(logits_CV, temperature, banned_tokens(vlm))
    with torch.no_grad():
        entropy_C = torch.special.entr(logp_CV.exp()).sum(-1) if entropy else logp_CV.new_zeros(len(logp_CV))
    return logp_CV.gather(1, targets_C[:, None]).squeeze(1), entropy_C
