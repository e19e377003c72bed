"""GRPO: advantages within a group, and the loss of the policy. Shapes: N completions, G of one prompt, T tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

LOSS_TYPES = ("paper", "grpo", "dr_grpo", "dapo", "bnpo")
RATIOS = ("sequence", "token")


class GRPOTerms(NamedTuple):
    """Per completion [N]: `loss` and `kl` (numerators), `weight` (their denominator), `clipped` (share of tokens)."""

    loss: Tensor
    kl: Tensor
    weight: Tensor
    clipped: Tensor


def group_advantages(rewards_NG: Tensor, eps: float = 0.0) -> Tensor:
    """MIRG-RL eq. 4: A_i = (r_i - mean(r)) / (std(r) + eps) within each row, [N, G] -> [N, G].

    std is the unbiased one (divided by G - 1), as in TRL, whose eps is 1e-4. A group of equal rewards gets zeros.
    """
    centred_NG = rewards_NG - rewards_NG.mean(1, keepdim=True)
    equal_N1 = (rewards_NG == rewards_NG[:, :1]).all(1, keepdim=True)
    std_N1 = torch.where(
        equal_N1, 1.0, (centred_NG.square().sum(1, keepdim=True) / max(rewards_NG.shape[1] - 1, 1)).sqrt()
    )
    return torch.where(equal_N1, 0.0, centred_NG / (std_N1 + eps))


def grpo_terms(
    logp_NT: Tensor,
    old_logp_NT: Tensor,
    advantage_N: Tensor,
    mask_NT: Tensor,
    ref_logp_NT: Tensor | None = None,
    kl_coeff: float = 0.0,
    loss_type: str = "paper",
    ratio: str = "sequence",
    clip_eps: float | None = None,
    max_tokens: int | None = None,
) -> GRPOTerms:
    """What each completion adds to the loss sum(loss) / sum(weight), so that ranks and micro-batches can be added up.

    A token's term is -min(r A, clip(r, 1 - clip_eps, 1 + clip_eps) A) + kl_coeff * k3. r is
    exp(logp - old_logp) of the token, or for `ratio` "sequence" exp of its mean over the completion. k3 =
    exp(ref - logp) - (ref - logp) - 1. "paper" and "grpo" take the mean over each completion's tokens, "dapo" and
    "bnpo" the mean over all tokens of the batch, "dr_grpo" the sum over `max_tokens`. "paper" without clipping and
    with `ratio` "sequence" is MIRG-RL eq. 5, J = 1/N sum_i [pi(o_i) / pi_old(o_i) A_i - lambda KL(pi || pi_ref)], where
    we divide the log of the sequence's ratio by its length. mask_NT is 1 at tokens of the completion; a completion
    without any adds no gradient. ValueError for an unknown name.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type: seen {loss_type!r}, expected one of {', '.join(LOSS_TYPES)}")
    if ratio not in RATIOS:
        raise ValueError(f"ratio: seen {ratio!r}, expected one of {', '.join(RATIOS)}")
    if loss_type == "dr_grpo" and not max_tokens:
        raise ValueError(f"max_tokens: seen {max_tokens}, expected the longest completion's tokens for dr_grpo")
    mask_NT = mask_NT.to(logp_NT.dtype)
    tokens_N = mask_NT.sum(1)
    log_ratio_NT = (logp_NT - old_logp_NT) * mask_NT
    if ratio == "sequence":
        log_ratio_NT = (log_ratio_NT.sum(1) / tokens_N.clamp(min=1))[:, None].expand_as(logp_NT)
    ratio_NT = log_ratio_NT.exp()
    advantage_N1 = advantage_N[:, None].to(logp_NT.dtype)
    gain_NT = ratio_NT * advantage_N1
    clipped_NT = torch.zeros_like(mask_NT)
    if clip_eps is not None:
        bounded_NT = ratio_NT.clamp(1 - clip_eps, 1 + clip_eps) * advantage_N1
        clipped_NT = (bounded_NT < gain_NT).to(mask_NT.dtype)
        gain_NT = torch.minimum(gain_NT, bounded_NT)
    kl_NT = torch.zeros_like(logp_NT)
    if ref_logp_NT is not None:
        difference_NT = (ref_logp_NT - logp_NT) * mask_NT
        kl_NT = difference_NT.exp() - difference_NT - 1
    loss_N = ((kl_coeff * kl_NT - gain_NT) * mask_NT).sum(1)
    kl_N = (kl_NT * mask_NT).sum(1)
    per_token = loss_type in ("dapo", "bnpo")
    share_N = tokens_N.clamp(min=1) if loss_type in ("paper", "grpo") else torch.ones_like(tokens_N)
    weight_N = tokens_N if per_token else torch.full_like(tokens_N, max_tokens if loss_type == "dr_grpo" else 1)  # type: ignore[arg-type]
    clipped_N = (clipped_NT * mask_NT).sum(1) / tokens_N.clamp(min=1)
    return GRPOTerms(loss_N / share_N, kl_N.detach() / share_N, weight_N, clipped_N.detach())


def grpo_loss(
    logp_NT: Tensor,
    old_logp_NT: Tensor,
    advantage_N: Tensor,
    mask_NT: Tensor,
    ref_logp_NT: Tensor | None = None,
    kl_coeff: float = 0.0,
    loss_type: str = "paper",
    ratio: str = "sequence",
    clip_eps: float | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """The loss of a whole batch, a scalar with gradient; arguments as `grpo_terms`."""
    terms = grpo_terms(
        logp_NT, old_logp_NT, advantage_N, mask_NT, ref_logp_NT, kl_coeff, loss_type, ratio, clip_eps, max_tokens
    )
    return terms.loss.sum() / terms.weight.sum().clamp(min=1)
