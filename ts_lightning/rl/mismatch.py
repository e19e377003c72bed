"""What a sampler that is not the trainer's own engine owes: its log-probabilities against the policy's.

Shapes: N completions, S steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ts_lightning.losses.grpo import k3
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import group_log_probs


def truncated_weights(policy_NS: Tensor, sampler_NS: Tensor, cap: float) -> Tensor:
    """[N, S] min(exp(policy - sampler), cap), constants: truncated importance sampling of the sampler's tokens."""
    return (policy_NS - sampler_NS).exp().clamp(max=cap).detach()


def mismatch(policy_NS: Tensor, sampler_NS: Tensor, mask_NS: Tensor) -> Tensor:
    """[N, S] an unbiased estimate of KL(sampler || policy) at the sampler's tokens; 0 outside of the mask."""
    return k3(sampler_NS, policy_NS, mask_NS.to(policy_NS.dtype)) * mask_NS


@torch.no_grad()
def weighted(
    vlm: VLM,
    micro_batches: Sequence[Mapping[str, Any]],
    prompts: list[dict[str, Any]],
    temperature: float,
    cap: float,
    wanted: Sequence[bool] | None = None,
) -> tuple[float, float]:
    """Give the drawn prompts of micro-batches, in place, the policy's `logp` and the `weight` of every token.

    Their `logp` were the sampler's, and are so under `sampler` afterwards. Returns (sum of `mismatch`, tokens). One
    forward of each micro-batch, as in training. wanted: prompts that count (None: all); the others stay as they are.
    """
    rest, total, count = iter(zip(prompts, wanted or [True] * len(prompts), strict=True)), 0.0, 0
    for micro in micro_batches:
        own = [next(rest) for _ in micro["samples"]]
        tokens = [one["tokens"] for one, _ in own]
        policy_NS = vlm.run(group_log_probs, micro, tokens, temperature, None, False).logp_NT
        for (one, counts), policy_GS in zip(own, policy_NS.cpu().split([*map(len, tokens)]), strict=True):
            if not counts:
                continue
            sampler_GS = one["logp"]
            policy_GS = policy_GS[:, : sampler_GS.shape[1]].to(sampler_GS.dtype)
            mask_GS = torch.stack(list(_masks(one["tokens"], sampler_GS.shape[1])))
            total += float(mismatch(policy_GS, sampler_GS, mask_GS).sum())
            count += int(mask_GS.sum())
            weight_GS = truncated_weights(policy_GS, sampler_GS, cap)
            one |= {"sampler": sampler_GS, "logp": policy_GS, "weight": torch.where(mask_GS, weight_GS, 1.0)}
    return total, count


def _masks(tokens: Sequence[Sequence[int]], steps: int) -> Iterator[Tensor]:
    return (torch.arange(steps) < len(one) for one in tokens)
