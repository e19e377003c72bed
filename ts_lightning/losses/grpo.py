"""Policy losses over groups of completions: one small class an algorithm, each with its formula and paper.

Shapes: N completions, G of one prompt, B prompts, T tokens. In the formulas i counts completions, t their tokens,
r_(i,t) = exp(logp - old_logp) is a token's ratio, s_i = exp(mean_t (logp - old_logp)) that of a whole completion.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

NORMALISE = ("length", "none")


class GRPOTerms(NamedTuple):
    """Per completion [N]: the loss is sum(loss) / sum(weight) over all ranks and micro-batches.

    `kl` and `clipped`: a completion's mean divergence from the reference (of MIRG without normalisation the sum, as it
    is in the loss), and the share of its tokens where a bound on the ratio acted.
    """

    loss: Tensor
    weight: Tensor
    kl: Tensor
    clipped: Tensor


def equal_rewards(rewards_NG: Tensor) -> Tensor:
    """[N]: whether a group's completions got one and the same reward, but for what sums are rounded by (1e-6)."""
    low_N, high_N = rewards_NG.aminmax(dim=1)
    return high_N - low_N <= 1e-6 * high_N.abs().clamp(min=1)


def group_advantages(rewards_NG: Tensor, eps: float = 0.0, divide: bool = True) -> Tensor:
    """MIRG-RL eq. 4: A_i = (r_i - mean(r)) / (std(r) + eps) within each row, [N, G] -> [N, G].

    std is the unbiased one (divided by G - 1), as in TRL, whose eps is 1e-4. A group of equal rewards gets zeros.
    divide: False leaves the deviation out (Dr. GRPO).
    """
    centred_NG = rewards_NG - rewards_NG.mean(1, keepdim=True)
    equal_N1 = equal_rewards(rewards_NG)[:, None]
    if not divide:
        return torch.where(equal_N1, 0.0, centred_NG)
    std_N1 = torch.where(
        equal_N1, 1.0, (centred_NG.square().sum(1, keepdim=True) / max(rewards_NG.shape[1] - 1, 1)).sqrt()
    )
    return torch.where(equal_N1, 0.0, centred_NG / (std_N1 + eps))


def token_ratio(logp_NT: Tensor, old_logp_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N, T] r_(i,t) = exp(logp - old_logp); 1 outside of the mask."""
    return ((logp_NT - old_logp_NT) * mask_NT).exp()


def sequence_ratio(logp_NT: Tensor, old_logp_NT: Tensor, mask_NT: Tensor, by_length: bool = True) -> Tensor:
    """[N, 1] exp of the mean over a completion's tokens of logp - old_logp; of their sum where not `by_length`."""
    sum_N1 = ((logp_NT - old_logp_NT) * mask_NT).sum(1, keepdim=True)
    return (sum_N1 / mask_NT.sum(1, keepdim=True).clamp(min=1) if by_length else sum_N1).exp()


def clipped_gain(ratio_NT: Tensor, advantage_N1: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1 - low, 1 + high) A), and where the bound acted."""
    gain_NT, bounded_NT = ratio_NT * advantage_N1, ratio_NT.clamp(1 - low, 1 + high) * advantage_N1
    return torch.minimum(gain_NT, bounded_NT), bounded_NT < gain_NT


def k3(logp_NT: Tensor, ref_logp_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N, T] exp(ref - logp) - (ref - logp) - 1, an unbiased and never negative estimate of KL(policy || reference)."""
    difference_NT = (ref_logp_NT - logp_NT) * mask_NT
    return difference_NT.exp() - difference_NT - 1


class Algorithm:
    """What `GRPO(algorithm=...)` takes: advantages from rewards, and every token's gain.

    One of your own is a dataclass with this base that says what its `gains` are; a YAML names it by `class_path`.
    `mean` says how tokens are averaged: "completion" (each completion's tokens, then completions), "token" (all tokens
    of the global batch alike) or "limit" (the sum over a completion's tokens divided by the token limit).
    `advantage_eps` is added to a group's standard deviation (TRL: 1e-4).
    """

    advantage_eps: float = 0.0
    mean: ClassVar[str] = "completion"

    def advantages(self, rewards_BG: Tensor) -> Tensor:
        """[B, G] from the rewards of each prompt's completions."""
        return group_advantages(rewards_BG, self.advantage_eps)

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is to grow, of every token (or [N, 1]: the same for all of them), and where a bound acted."""
        raise NotImplementedError

    def divergence(self, logp_NT: Tensor, ref_logp_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """[N, T] the divergence from the reference, of every token."""
        return k3(logp_NT, ref_logp_NT, mask_NT)

    def terms(
        self,
        logp_NT: Tensor,
        old_logp_NT: Tensor,
        advantage_N: Tensor,
        mask_NT: Tensor,
        ref_logp_NT: Tensor | None = None,
        kl_coeff: float = 0.0,
        max_tokens: int | None = None,
        weight_NT: Tensor | None = None,
    ) -> GRPOTerms:
        """Loss -gain + kl_coeff * KL; a completion without a token in `mask_NT` adds no gradient.

        weight_NT: of each token's gain, where another policy drew it (truncated importance sampling).

        ValueError where `mean` is "limit" and `max_tokens`, the longest completion's tokens, is not given.
        """
        mask_NT = mask_NT.to(logp_NT.dtype)
        tokens_N = mask_NT.sum(1)
        gain_NT, acted_NT = self.gains(logp_NT, old_logp_NT, advantage_N[:, None].to(logp_NT.dtype), mask_NT)
        if weight_NT is not None:
            gain_NT = gain_NT * weight_NT
        kl_NT = torch.zeros_like(logp_NT)
        if ref_logp_NT is not None:
            kl_NT = self.divergence(logp_NT, ref_logp_NT, mask_NT)
        loss_N = ((kl_coeff * kl_NT - gain_NT) * mask_NT).sum(1)
        own_N = tokens_N.clamp(min=1)
        weight_N = torch.ones_like(tokens_N)
        if self.mean == "completion":
            loss_N = loss_N / own_N
        elif self.mean == "token":
            weight_N = tokens_N
        elif not max_tokens:
            raise ValueError(f"max_tokens: seen {max_tokens}, expected the longest completion's tokens")
        else:
            weight_N = weight_N * max_tokens
        kl_N, clipped_N = ((values_NT * mask_NT).sum(1).detach() / own_N for values_NT in (kl_NT, acted_NT))
        return GRPOTerms(loss_N, weight_N, kl_N, clipped_N)


@dataclass(frozen=True)
class MIRG(Algorithm):
    """MIRG-RL eq. 5: J = 1/N sum_i [pi(o_i) / pi_old(o_i) A_i - lambda KL(pi || pi_ref)]. It clips nothing.

    Args:
        normalise: "length": the logarithm of the ratio, and the divergence, are divided by the completion's tokens.
            "none" is the equation as it is printed; its ratio leaves what a float holds after a few hundred tokens.
    """

    normalise: str = "length"
    advantage_eps: float = 0.0

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise: seen {self.normalise!r}, expected one of {', '.join(NORMALISE)}")

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        gain_N1 = sequence_ratio(logp_NT, old_logp_NT, mask_NT, self.normalise == "length") * advantage_N1
        return gain_N1, torch.zeros_like(gain_N1)

    def divergence(self, logp_NT: Tensor, ref_logp_NT: Tensor, mask_NT: Tensor) -> Tensor:
        kl_NT = k3(logp_NT, ref_logp_NT, mask_NT)
        return kl_NT if self.normalise == "length" else kl_NT * mask_NT.sum(1, keepdim=True)


@dataclass(frozen=True)
class GRPO(Algorithm):
    """DeepSeekMath eq. 3: 1/N sum_i 1/|o_i| sum_t min(r_(i,t) A_i, clip(r_(i,t), 1 - clip_low, 1 + clip_high) A_i).

    Args:
        clip_low: Below 1 by so much a ratio stops to count where the advantage is negative.
        clip_high: Above 1 by so much, where it is positive.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    advantage_eps: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("clip_low", self.clip_low), ("clip_high", self.clip_high)):
            if value <= 0:
                raise ValueError(f"{name}: seen {value}, expected above 0")

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        return clipped_gain(token_ratio(logp_NT, old_logp_NT, mask_NT), advantage_N1, self.clip_low, self.clip_high)


@dataclass(frozen=True)
class BNPO(GRPO):
    """GRPO with every token of the batch alike: 1/sum_i |o_i| sum_i sum_t min(...), TRL's `bnpo`.

    The batch is the global one, over micro-batches and ranks, where TRL's is the one of a device: with one device and
    without accumulation the two are equal.
    """

    mean: ClassVar[str] = "token"


@dataclass(frozen=True)
class DrGRPO(GRPO):
    """Dr. GRPO ("Understanding R1-Zero-Like Training", eq. 4): A_i = r_i - mean(r), a sum over tokens.

    1/N sum_i 1/L sum_t min(...), L the token limit: neither short answers nor easy prompts weigh more.
    ValueError for an `advantage_eps`: there is no deviation to add it to.
    """

    mean: ClassVar[str] = "limit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage_eps:
            raise ValueError(f"advantage_eps: seen {self.advantage_eps}, expected 0: Dr. GRPO divides by no deviation")

    def advantages(self, rewards_BG: Tensor) -> Tensor:
        return group_advantages(rewards_BG, divide=False)


@dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO eq. 8: 1/sum_i |o_i| sum_i sum_t min(r A, clip(r, 1 - 0.2, 1 + 0.28) A): unlikely tokens may grow further.

    Its soft over-long penalty (eq. 13) is the reward `ts_lightning.rl.length_reward`, its dynamic sampling is
    `refills` of `ts_lightning.rl.RolloutCallback`; it keeps no reference (`kl_coeff: 0`).
    """

    clip_high: float = 0.28
    mean: ClassVar[str] = "token"


@dataclass(frozen=True)
class GSPO(GRPO):
    """GSPO eq. 5: 1/N sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), s_i of whole completions."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        return clipped_gain(sequence_ratio(logp_NT, old_logp_NT, mask_NT), advantage_N1, self.clip_low, self.clip_high)


@dataclass(frozen=True)
class CISPO(Algorithm):
    """CISPO (MiniMax-M1 eq. 4): 1/sum_i |o_i| sum_i sum_t stopgrad(min(r_(i,t), max_ratio)) A_i logp_(i,t).

    A bounded ratio weighs its token less; no token loses its gradient.

    Args:
        max_ratio: The largest weight of a token (TRL: `epsilon_high` 5).
    """

    max_ratio: float = 5.0
    advantage_eps: float = 0.0
    mean: ClassVar[str] = "token"

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio_NT = token_ratio(logp_NT, old_logp_NT, mask_NT).detach()
        return ratio_NT.clamp(max=self.max_ratio) * advantage_N1 * logp_NT, ratio_NT > self.max_ratio


@dataclass(frozen=True)
class SAPO(Algorithm):
    """SAPO ("Soft Adaptive Policy Optimization"): 1/N sum_i 1/|o_i| sum_t 4/tau sigmoid(tau (r_(i,t) - 1)) A_i.

    A soft gate in place of the clip; tau is `tau_positive` for positive advantages, else `tau_negative`.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05
    advantage_eps: float = 0.0

    def gains(
        self, logp_NT: Tensor, old_logp_NT: Tensor, advantage_N1: Tensor, mask_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio_NT = token_ratio(logp_NT, old_logp_NT, mask_NT)
        tau_N1 = torch.where(advantage_N1 > 0, self.tau_positive, self.tau_negative).to(ratio_NT.dtype)
        gain_NT = torch.sigmoid(tau_N1 * (ratio_NT - 1)) * 4 / tau_N1 * advantage_N1
        return gain_NT, torch.zeros_like(gain_NT)


def grpo_loss(
    logp_NT: Tensor,
    old_logp_NT: Tensor,
    advantage_N: Tensor,
    mask_NT: Tensor,
    ref_logp_NT: Tensor | None = None,
    kl_coeff: float = 0.0,
    algorithm: Algorithm | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """The loss of a whole batch, a scalar with gradient; `algorithm` is `MIRG()` where none is given.

    logp_NT: of the policy, with gradient; old_logp_NT: of the sampler; mask_NT: 1 at tokens of a completion.
    """
    terms = (algorithm or MIRG()).terms(logp_NT, old_logp_NT, advantage_N, mask_NT, ref_logp_NT, kl_coeff, max_tokens)
    return terms.loss.sum() / terms.weight.sum().clamp(min=1)
