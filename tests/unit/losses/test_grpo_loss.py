"""Advantages and the GRPO loss: by hand, and against TRL's own function on the same tensors."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts_lightning.losses import (
    BNPO,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    MIRG,
    SAPO,
    Algorithm,
    DrGRPO,
    group_advantages,
    grpo_loss,
)

EVERY = [MIRG(), GRPO(), BNPO(), DrGRPO(), DAPO(), GSPO(), CISPO(), SAPO()]


def test_advantages_by_hand() -> None:
    # rewards 1, 2, 3: mean 2, unbiased deviation 1; 0, 0, 3: mean 1, deviation sqrt(3)
    got = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.1, 0.1, 0.1]]))
    root = math.sqrt(3)
    torch.testing.assert_close(got, torch.tensor([[-1.0, 0.0, 1.0], [-1 / root, -1 / root, 2 / root], [0.0, 0.0, 0.0]]))
    assert not got[2].any()
    assert not group_advantages(torch.tensor([[2.0]])).any()


def test_rewards_that_differ_by_their_rounding_are_equal() -> None:
    """0.1 + 0.2 is one unit in the last place above 0.3; divided by its own deviation it would weigh like a success."""
    one = torch.tensor(1.9)
    above = torch.nextafter(one, torch.tensor(2.0))
    assert not group_advantages(torch.stack([one, one, one, above])[None]).any()
    got = group_advantages(torch.tensor([[1.9, 1.9, 1.9, 1.9001]]))  # a hundredth of a pixel: mean + 0.75 of the gap
    torch.testing.assert_close(got, torch.tensor([[-0.5, -0.5, -0.5, 1.5]]), atol=2e-3, rtol=0)


def test_a_deviation_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"advantage_eps: seen 0.3, expected 0: Dr. GRPO"):
        DrGRPO(advantage_eps=0.3)


def test_equation_5_by_hand() -> None:
    # two completions of two and one tokens; log-ratios (ln 2, 0) and (-ln 2): sequence ratios sqrt(2) and 1/2
    ln2 = math.log(2)
    old = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]])
    new = torch.tensor([[-1.0 + ln2, -2.0], [-1.0 - ln2, 0.0]])
    reference = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]])  # k3: exp(-ln2) + ln2 - 1 = ln2 - 1/2, 0; exp(ln2) - ln2 - 1
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    kl = [(ln2 - 0.5) / 2, 1 - ln2]
    expected = -0.5 * ((math.sqrt(2) * 1.5 - 0.1 * kl[0]) + (0.5 * -1.5 - 0.1 * kl[1]))
    got = grpo_loss(new, old, torch.tensor([1.5, -1.5]), mask, reference, kl_coeff=0.1)
    assert got.item() == pytest.approx(expected, rel=1e-6)
    terms = MIRG().terms(new, old, torch.tensor([1.5, -1.5]), mask, reference, kl_coeff=0.1)
    assert terms.kl.tolist() == pytest.approx(kl, rel=1e-5)
    # as printed: the ratio of the whole answer, 2 * 1 and 1/2, and the divergence of all of its tokens
    printed = -0.5 * ((2 * 1.5 - 0.1 * (ln2 - 0.5)) + (0.5 * -1.5 - 0.1 * (1 - ln2)))
    as_printed = MIRG(normalise="none")
    got = grpo_loss(new, old, torch.tensor([1.5, -1.5]), mask, reference, 0.1, as_printed)
    assert got.item() == pytest.approx(printed, rel=1e-6)


# Two completions, of two tokens and of one; ratios (2, 1) with advantage 1.5 and (1/2) with advantage -1.5.
LN2, MASK = math.log(2), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
OLD = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]])
NEW = torch.tensor([[-1.0 + LN2, -2.0], [-1.0 - LN2, 0.0]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("algorithm", "gain", "clipped"),
    [
        # tokens 1.2 * 1.5 and 1 * 1.5, and min(0.5 * -1.5, 0.8 * -1.5); each completion's mean
        (GRPO(), ((1.8 + 1.5) / 2 - 1.2) / 2, [0.5, 1]),
        (BNPO(), (1.8 + 1.5 - 1.2) / 3, [0.5, 1]),
        (DrGRPO(), (1.8 + 1.5 - 1.2) / (2 * 4), [0.5, 1]),  # four tokens are the limit
        (DAPO(), (1.28 * 1.5 + 1.5 - 1.2) / 3, [0.5, 1]),
        # ratios sqrt(2) and 1/2 of whole completions
        (GSPO(), (1.0004 * 1.5 - 0.9997 * 1.5) / 2, [1, 1]),
        # weights min(2, 1.6), 1 and 1/2 of the log-probabilities
        (CISPO(max_ratio=1.6), (1.6 * 1.5 * (-1 + LN2) + 1.5 * -2 - 0.5 * 1.5 * (-1 - LN2)) / 3, [0.5, 0]),
        (SAPO(tau_positive=1, tau_negative=2), (4 * 1.5 * (sigmoid(1) + 0.5) / 2 - 2 * 1.5 * sigmoid(-1)) / 2, [0, 0]),
    ],
)
def test_every_algorithm_by_hand(algorithm: Algorithm, gain: float, clipped: list[float]) -> None:
    advantages = torch.tensor([1.5, -1.5])
    loss = grpo_loss(NEW, OLD, advantages, MASK, algorithm=algorithm, max_tokens=4)
    assert loss.item() == pytest.approx(-gain, abs=2e-7)
    assert algorithm.terms(NEW, OLD, advantages, MASK, max_tokens=4).clipped.tolist() == clipped


def test_advantages_of_algorithms() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])  # mean 3, deviation sqrt(7)
    assert DrGRPO().advantages(rewards).tolist() == [[-2, -1, 3]]
    assert GRPO(advantage_eps=1).advantages(rewards)[0, 2].item() == pytest.approx(3 / (math.sqrt(7) + 1))


def test_first_step_is_the_policy_gradient() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0])
    grpo_loss(logp, logp.detach(), advantages, torch.ones(2, 2)).backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-0.25, -0.25], [0.25, 0.25]]))


def test_a_completion_without_tokens_adds_nothing() -> None:
    logp = torch.tensor([[-1.0], [0.0]], requires_grad=True)
    mask = torch.tensor([[1.0], [0.0]])
    for algorithm in EVERY:
        loss = grpo_loss(logp, logp.detach(), torch.ones(2), mask, logp.detach(), 0.1, algorithm, max_tokens=4)
        assert torch.isfinite(loss)
        (grad,) = torch.autograd.grad(loss, logp)
        assert grad[1].item() == 0


def test_wrong_options_are_refused() -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="normalise: seen 'tokens', expected one of length, none"):
        MIRG(normalise="tokens")
    with pytest.raises(ValueError, match="clip_high: seen 0, expected above 0"):
        DAPO(clip_high=0)
    with pytest.raises(ValueError, match="max_tokens: seen None, expected the longest completion's tokens"):
        grpo_loss(one, one, one[0], one, algorithm=DrGRPO())


def trl_loss(
    logp: torch.Tensor, inputs: dict[str, Any], loss_type: str, level: str, low: float, high: float, beta: float
) -> torch.Tensor:
    """TRL's own `_compute_loss`, unbound, over given log-probabilities."""
    trainers = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs trl", exc_type=ImportError)
    same = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
        args=SimpleNamespace(
            use_bias_correction_kl=False,
            delta=None,
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
        ),
        model=SimpleNamespace(training=True),
        accelerator=same,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=low,
        epsilon_high=high,
        loss_type=loss_type,
        current_gradient_accumulation_steps=1,
        max_completion_length=logp.shape[1] + 3,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    return trainers.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize(
    ("algorithm", "loss_type", "level", "low", "high"),
    [
        (GRPO(), "grpo", "token", 0.2, 0.2),
        (BNPO(), "bnpo", "token", 0.2, 0.2),
        (DrGRPO(), "dr_grpo", "token", 0.2, 0.2),
        (DAPO(), "dapo", "token", 0.2, 0.28),
        (GSPO(), "grpo", "sequence", 3e-4, 4e-4),
        (GSPO(clip_low=0.2, clip_high=0.2), "grpo", "sequence", 0.2, 0.2),
        (MIRG(), "grpo", "sequence", 1e9, 1e9),  # eq. 5 is its sequence form without a bound
        (CISPO(max_ratio=1.2), "cispo", "token", 0.2, 1.2),
        (CISPO(), "cispo", "token", 0.2, 5.0),
        (SAPO(), "sapo", "token", 0.2, 0.2),
    ],
)
def test_value_and_gradient_equal_trl(
    algorithm: Algorithm, loss_type: str, level: str, low: float, high: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    old = -torch.rand(8, 11, generator=generator, dtype=torch.float64) * 3
    logp = (old + 0.3 * torch.randn(8, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = old + 0.2 * torch.randn(8, 11, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([11, 1, 5, 7, 2, 9, 11, 4])
    mask = (torch.arange(11) < lengths[:, None]).double()
    rewards = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    advantages = group_advantages(rewards, eps=1e-4).flatten()
    std = rewards.std(1, keepdim=True)  # TRL: rewards - mean over unbiased deviation + 1e-4
    torch.testing.assert_close(advantages, ((rewards - rewards.mean(1, keepdim=True)) / (std + 1e-4)).flatten())
    inputs = {
        "prompt_ids": torch.zeros(8, 1, dtype=torch.long),
        "prompt_mask": torch.ones(8, 1),
        "completion_ids": torch.zeros(8, 11, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    theirs = trl_loss(logp, inputs, loss_type, level, low, high, beta=0.04)
    ours = grpo_loss(logp, old, advantages, mask, reference, 0.04, algorithm, max_tokens=14)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logp)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3
