"""The GRPO benchmark: its two forms, its bars, its reference policies, peak memory."""

import pytest
import torch

from tools.bench import grpo, grpo_case, grpo_memory, grpo_step


def test_bars_cover_what_was_measured() -> None:
    seen = grpo.met({"update/repeated": 0.25, "rollout_24/repeated": 0.351, "whole/repeated": 9.0})
    assert seen == {"update/repeated <= 0.25": True, "rollout_24/repeated <= 0.35": False}


@pytest.mark.parametrize("pictures", [0, 2])
def test_both_forms_are_equal_and_train(pictures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 48, "intermediate_size": 64, "num_layers": 3, "num_heads": 4, "vision_layers": 1}
    monkeypatch.setattr(grpo_step, "SIZES", small)
    case = grpo_step.StepCase(90, 7, pictures)
    assert max(case.errors().values()) < 1e-4
    for shared in (True, False):
        lengths = [len(tokens) for group in case.roll_out(shared, 7).tokens for tokens in group]
        assert lengths == [7] * grpo_step.GROUP  # none ends early
        before = [p.detach().clone() for p in case.trainable]
        case.whole(shared)
        assert any(not torch.equal(a, b) for a, b in zip(before, case.trainable, strict=True))


def test_repeated_prompts_are_the_same_prompt() -> None:
    batch = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(3, 1), "samples": []}
    rows = grpo_case.repeat(batch, 8)
    assert rows["input_ids"].tolist() == [[1, 2]] * 8
    assert len(rows["pixel_values"]) == 3 * 8
    assert len({sample.id for sample in rows["samples"]}) == 8


@pytest.mark.parametrize("second_model", [False, True])
def test_the_reference_stays_where_training_began(second_model: bool) -> None:
    case = grpo_step.StepCase(prompt=16, completion=2, second_model=second_model)
    assert max(case.errors().values()) < 1e-4
    tokens = case.tokens_NS.tolist()
    before_NS = case.score(True, tokens).detach()
    case.whole(True)
    with torch.no_grad():
        torch.testing.assert_close(case.reference_log_probs(True, tokens), before_NS, rtol=1e-6, atol=1e-6)
        assert not torch.equal(case.score(True, tokens), before_NS)


def test_a_second_model_needs_more_memory() -> None:
    """A short step, so that weights outweigh activations: 22 M parameters against the 9 M that train."""
    ratio, mib = grpo_memory.compare(prompt=16, completion=2)
    assert ratio < 1
    assert mib["second_model"] - mib["ours"] > 0.5 * (22.1 - 9.4) * 4e6 / 2**20
