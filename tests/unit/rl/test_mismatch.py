"""Another engine's draws: truncated weights, the divergence, what a checkpoint keeps, the loss they give.

Bitwise: the same function on the same rows, and numbers that are copied.
"""

import math

import pytest
import torch

from tests.unit.models.test_shared_prefix import prompt, twin
from ts_lightning.data.collate import collate
from ts_lightning.losses import GRPO, MIRG
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.mismatch import mismatch, truncated_weights, weighted
from ts_lightning.rl.sampling import Sampled, drawn


def test_weights_are_truncated_above_alone() -> None:
    policy, sampler = torch.tensor([[-1.0, -1.0, -3.0]]), torch.tensor([[-2.0, -1.0, -1.0]])
    weights = truncated_weights(policy, sampler, 2.0)
    assert weights.tolist()[0] == pytest.approx([2.0, 1.0, math.exp(-2)])  # e would be 2.72


def test_mismatch_is_an_estimate_of_the_divergence() -> None:
    """Its mean under the sampler is KL(sampler || policy): two tokens of 0.5 each, against 0.2 and 0.8."""
    policy, sampler = torch.tensor([[math.log(0.2), math.log(0.8)]]), torch.tensor([[math.log(0.5)] * 2])
    mean = mismatch(policy, sampler, torch.ones(1, 2)).mean().item()
    assert mean == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8))
    assert mismatch(policy, sampler, torch.tensor([[1.0, 0.0]]))[0, 1] == 0


def test_a_token_that_another_engine_drew_has_its_weight_in_the_loss() -> None:
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    weight, mask = torch.tensor([[0.5, 2.0]]), torch.ones(1, 2)
    terms = GRPO().terms(logp, logp.detach(), torch.tensor([3.0]), mask, weight_NT=weight)
    assert terms.loss.item() == pytest.approx(-3 * (0.5 + 2.0) / 2)
    terms.loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist()[0] == pytest.approx([-3 * 0.5 / 2, -3 * 2.0 / 2])
    plain = MIRG().terms(logp, logp.detach(), torch.tensor([3.0]), mask)
    assert torch.equal(plain.loss, MIRG().terms(logp, logp, torch.tensor([3.0]), mask, weight_NT=mask).loss)


def test_prompts_get_the_policys_log_probabilities_and_checkpoints_keep_both() -> None:
    vlm = twin().eval()
    batches = [collate([vlm.encode(prompt(i, n), for_generation=True)], vlm.pad_id) for i, n in enumerate((1, 0))]
    tokens = [[[5, 6, 7], [8]], [[9, 10], [11, 12]]]
    sampled = [Sampled([group], torch.full((2, max(map(len, group))), -1.0), [[True] * 2]) for group in tokens]
    prompts = [one for each in sampled for one in each.prompts()]
    total, count = weighted(vlm, batches, prompts, 0.7, 1.5)
    assert count == 8
    expected = 0.0
    for batch, group, one in zip(batches, tokens, prompts, strict=True):
        with torch.no_grad():
            logp = group_log_probs(vlm, batch, [group], 0.7).logp_NT
        assert torch.equal(one["logp"], logp)
        for g, completion in enumerate(group):
            for s in range(len(completion)):
                difference = logp[g, s].item() + 1.0
                expected += math.exp(difference) - difference - 1
                assert one["weight"][g, s].item() == pytest.approx(min(math.exp(difference), 1.5), rel=1e-5)
    assert total == pytest.approx(expected, rel=1e-5)
    plain = Sampled([[[5], [6]], [[vlm.pad_id]] * 2], torch.full((4, 1), -1.0), [[True] * 2] * 2).prompts()
    total, count = weighted(vlm, batches, plain, 0.7, 1.5, [True, False])  # padding can't be said
    assert (count, math.isfinite(total)) == (2, True)
    assert plain[1].keys() == {"tokens", "stopped", "logp"}
    assert prompts[0]["weight"][1, 1:].tolist() == [1.0, 1.0]  # behind the end
    again = drawn(prompts, torch.device("cpu"))
    assert again.weight_NS is not None
    assert again.weight_NS.shape == (4, 3)
    kept = again.prompts()
    assert all(torch.equal(a["weight"], b["weight"]) for a, b in zip(kept, prompts, strict=True))
