"""The GRPO benchmark: its bars, its reference policies, peak memory."""

import pytest
import torch

from ts_lightning.bench import grpo, grpo_memory, grpo_step


def test_bars_cover_what_was_measured() -> None:
    seen = grpo.met({"update/repeated": 0.25, "rollout_24/repeated": 0.351, "whole/repeated": 9.0})
    assert seen == {"update/repeated <= 0.25": True, "rollout_24/repeated <= 0.35": False}


@pytest.mark.parametrize("second_model", [False, True])
def test_the_reference_stays_where_training_began(second_model: bool) -> None:
    case = grpo_step.StepCase(prompt=16, completion=2, second_model=second_model)
    assert max(case.errors().values()) < 1e-4
    before_NS = case.score(True, case.tokens_NS).detach()
    case.whole(True)
    with torch.no_grad():
        assert torch.equal(case.reference_log_probs(True, case.tokens_NS), before_NS)
        assert not torch.equal(case.score(True, case.tokens_NS), before_NS)


def test_a_second_model_needs_more_memory() -> None:
    """A short step, so that weights outweigh activations: 22 M parameters against the 9 M that train."""
    ratio, mib = grpo_memory.compare(prompt=16, completion=2)
    assert ratio < 1
    assert mib["second_model"] - mib["ours"] > 0.5 * (22.1 - 9.4) * 4e6 / 2**20
