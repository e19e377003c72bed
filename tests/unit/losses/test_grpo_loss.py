"""Advantages and the GRPO loss: by hand, and against TRL's own function on the same tensors."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts_lightning.losses import group_advantages, grpo_loss, grpo_terms


def test_advantages_by_hand() -> None:
    # rewards 1, 2, 3: mean 2, unbiased deviation 1; 0, 0, 3: mean 1, deviation sqrt(3)
    got = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.1, 0.1, 0.1]]))
    root = math.sqrt(3)
    torch.testing.assert_close(got, torch.tensor([[-1.0, 0.0, 1.0], [-1 / root, -1 / root, 2 / root], [0.0, 0.0, 0.0]]))
    assert not got[2].any()
    assert not group_advantages(torch.tensor([[2.0]])).any()


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
    terms = grpo_terms(new, old, torch.tensor([1.5, -1.5]), mask, reference, kl_coeff=0.1)
    assert terms.kl.tolist() == pytest.approx(kl, rel=1e-5)
    # token ratios: mean of (2, 1) and 1/2
    token = grpo_loss(new, old, torch.tensor([1.5, -1.5]), mask, ratio="token")
    assert token.item() == pytest.approx(-0.5 * (1.5 * 1.5 - 1.5 * 0.5), rel=1e-6)


def test_clipping_by_hand() -> None:
    # ratio 2 with a positive advantage counts 1.2; with a negative one 2
    new, old, mask = torch.tensor([[math.log(2)]]).repeat(2, 1), torch.zeros(2, 1), torch.ones(2, 1)
    terms = grpo_terms(new, old, torch.tensor([1.0, -1.0]), mask, clip_eps=0.2)
    assert terms.loss.tolist() == pytest.approx([-1.2, 2.0])
    assert terms.clipped.tolist() == [1.0, 0.0]


def test_first_step_is_the_policy_gradient() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0])
    grpo_loss(logp, logp.detach(), advantages, torch.ones(2, 2)).backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-0.25, -0.25], [0.25, 0.25]]))


def test_a_completion_without_tokens_adds_nothing() -> None:
    logp = torch.tensor([[-1.0], [0.0]], requires_grad=True)
    mask = torch.tensor([[1.0], [0.0]])
    for kind in ("paper", "grpo", "dapo", "bnpo", "dr_grpo"):
        loss = grpo_loss(logp, logp.detach(), torch.ones(2), mask, logp.detach(), 0.1, kind, max_tokens=4)
        assert torch.isfinite(loss)
        (grad,) = torch.autograd.grad(loss, logp)
        assert grad[1].item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_type": "ppo"}, "loss_type: seen 'ppo', expected one of paper"),
        ({"ratio": "mean"}, "ratio: seen 'mean'"),
        ({"loss_type": "dr_grpo"}, "max_tokens: seen None"),
    ],
)
def test_unknown_names_are_refused(arguments: dict[str, Any], message: str) -> None:
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=message):
        grpo_loss(one, one, one[0], one, **arguments)


def trl_loss(logp: torch.Tensor, inputs: dict[str, Any], loss_type: str, level: str, beta: float) -> torch.Tensor:
    """TRL's own `_compute_loss`, unbound, over given log-probabilities."""
    trainers = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs trl", exc_type=ImportError)
    same = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=same,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type=loss_type,
        current_gradient_accumulation_steps=1,
        max_completion_length=logp.shape[1] + 3,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    return trainers.GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_value_and_gradient_equal_trl(loss_type: str, level: str) -> None:
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
    theirs = trl_loss(logp, inputs, loss_type, level, beta=0.04)
    ours = grpo_loss(logp, old, advantages, mask, reference, 0.04, loss_type, level, clip_eps=0.2, max_tokens=14)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logp)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3
