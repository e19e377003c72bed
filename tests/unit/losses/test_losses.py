"""Losses against numbers worked out by hand and against slow, obvious versions of themselves."""

import math

import pytest
import torch

from ts_lightning.losses import (
    Stepwise,
    TokenMean,
    answer_nll,
    expert_load,
    load_balance_loss,
    num_loss_rows,
    stepwise_loss,
    token_mean_loss,
    token_nll,
)

NAN = float("nan")
# Row 0: step 0 = (1, 3), step 1 = (2, 4, 6). Row 1: one step = (5,). Row 2: nothing to learn.
NLL = torch.tensor([[NAN, 1.0, 3.0, 2.0, 4.0, 6.0], [7.0, 5.0, 9.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
STEPS = torch.tensor([[-1, 0, 0, 1, 1, 1], [-1, 0, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sum", [1 + 3 + 2 + 4 + 6, 5, 0]),
        ("step_mean", [(1 + 3) / 2 + (2 + 4 + 6) / 3, 5, 0]),
    ],
)
def test_stepwise_loss_by_hand(mode: str, expected: list[float]) -> None:
    assert stepwise_loss(NLL, STEPS, mode).tolist() == pytest.approx(expected, rel=1e-6)


def test_token_mean_loss_by_hand() -> None:
    torch.testing.assert_close(token_mean_loss(NLL, STEPS), torch.tensor([16 / 5, 5.0, 0.0]))
    assert int(num_loss_rows(STEPS)) == 2


def test_steps_need_not_be_contiguous() -> None:
    """Tokens of a step may lie apart and step numbers may have holes (a step lost to truncation)."""
    nll = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert stepwise_loss(nll, torch.tensor([[5, 2, 5, -1]]), "step_mean").tolist() == [(1 + 3) / 2 + 2]


def test_step_mean_gradient_is_one_over_the_step_length() -> None:
    nll = NLL.nan_to_num(0.0).requires_grad_()
    stepwise_loss(nll, STEPS, "step_mean").sum().backward()
    assert nll.grad is not None
    third = 1 / 3
    torch.testing.assert_close(nll.grad[0], torch.tensor([0.0, 0.5, 0.5, third, third, third]))
    assert nll.grad[2].tolist() == [0.0] * 6


def test_unknown_mode_names_the_modes() -> None:
    with pytest.raises(ValueError, match="seen 'mean', expected one of sum, step_mean"):
        stepwise_loss(NLL, STEPS, "mean")


def test_sum_equals_torch_cross_entropy() -> None:
    """From logits at the loss positions to rows: `sum` is ordinary summed cross-entropy."""
    rng = torch.Generator().manual_seed(0)
    rows, cols, vocab = 4, 9, 13
    step_ids = torch.randint(-1, 3, (rows, cols), generator=rng)
    row, col = torch.nonzero(step_ids >= 0, as_tuple=True)
    logits = torch.randn(len(row), vocab, generator=rng, requires_grad=True)
    targets = torch.randint(0, vocab, (len(row),), generator=rng)
    nll = answer_nll({"logits": logits, "targets": targets, "positions": (row, col)}, step_ids)
    loss = stepwise_loss(nll, step_ids, "sum").sum()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, expected_grad)


def test_token_nll_by_hand_and_in_fp32() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    nll = token_nll(logits.bfloat16(), torch.tensor([0, 1]))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, torch.tensor([math.log(2), math.log(4)]), rtol=2e-3, atol=0)


def test_load_balance_by_hand() -> None:
    """Row 0 (two tokens): f = (1, 0), p = (0.7, 0.3), R = 2 * 0.7. Row 1 (two tokens): f = p = (0.5, 0.5), R = 1."""
    probs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])
    choices = torch.tensor([[0], [0], [0], [1]])
    loss = load_balance_loss(probs, choices, torch.tensor([0, 0, 1, 1]), num_rows=3)
    torch.testing.assert_close(loss, torch.tensor([1.4, 1.0, 0.0]))


def test_first_choice_counts_one_expert_a_token() -> None:
    """Two tokens whose first expert is 0: f = (1, 0), p = (0.7, 0.3), R = 1.4; over both choices f = p, R = 1."""
    probs = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    output = {"logits": torch.zeros(1, 2), "targets": torch.tensor([0]), "positions": (torch.tensor([0]),) * 2}
    output |= {"router_probs": [probs], "expert_ids": [torch.tensor([[0, 1], [0, 1]])], "rows": [torch.tensor([0, 0])]}
    batch = {"step_ids": torch.tensor([[0]])}
    found = [
        Stepwise(balance_coeff=1.0, first_choice=first)(output, batch)["balance"].item() for first in (True, False)
    ]
    assert found == pytest.approx([1.4, 1.0])


def load_balance_loop(probs: torch.Tensor, choices: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    out = []
    for row in range(num_rows):
        mine = [t for t in range(len(rows)) if rows[t] == row]
        total = torch.zeros(())
        for expert in range(probs.shape[1]):
            if mine:
                pairs = [int(choice) for t in mine for choice in choices[t]]
                total = total + pairs.count(expert) / len(pairs) * torch.stack([probs[t, expert] for t in mine]).mean()
        out.append(probs.shape[1] * total)
    return torch.stack(out)


@pytest.mark.parametrize(("num_experts", "top_k"), [(2, 1), (4, 2), (4, 4), (1, 1)])
def test_load_balance_equals_the_loop(num_experts: int, top_k: int) -> None:
    rng = torch.Generator().manual_seed(num_experts * 10 + top_k)
    scores = torch.randn(41, num_experts, generator=rng, requires_grad=True)
    rows = torch.randint(0, 5, (41,), generator=rng)
    probs = scores.softmax(dim=1)
    choices = probs.topk(top_k, dim=1).indices
    weights = torch.randn(6, generator=rng)
    fast, slow = load_balance_loss(probs, choices, rows, 6), load_balance_loop(probs, choices, rows, 6)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad((fast * weights).sum(), scores, retain_graph=True)
    (expected,) = torch.autograd.grad((slow * weights).sum(), scores)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


def test_load_balance_is_one_when_balanced_and_e_when_collapsed() -> None:
    rows = torch.zeros(8, dtype=torch.long)
    balanced = load_balance_loss(torch.full((8, 4), 0.25), torch.arange(8).remainder(4).unsqueeze(1), rows, 1)
    collapsed = load_balance_loss(torch.eye(4)[[2] * 8], torch.full((8, 1), 2), rows, 1)
    assert (balanced.item(), collapsed.item()) == (1.0, 4.0)


def test_load_balance_without_tokens_is_zero() -> None:
    empty = load_balance_loss(
        torch.zeros(0, 2), torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long), 2
    )
    assert empty.tolist() == [0.0, 0.0]


def output_of(nll: torch.Tensor, steps: torch.Tensor) -> dict:
    """What a vlm returns for rows whose tokens have these losses: two words, log-odds that give nll to the first."""
    positions = torch.nonzero(steps >= 0, as_tuple=True)
    odds = -torch.log(torch.expm1(nll[positions]))
    return {
        "logits": torch.stack([odds, torch.zeros_like(odds)], 1),
        "targets": torch.zeros(len(odds), dtype=torch.long),
        "positions": positions,
        "router_probs": [torch.tensor([[0.8, 0.2], [0.6, 0.4]])] * 2,
        "expert_ids": [torch.tensor([[0], [0]])] * 2,
        "rows": [torch.tensor([0, 0])] * 2,
    }


def test_row_losses_by_hand() -> None:
    """Two layers whose routers send both tokens of row 0 to one expert: R(g) = 1.4 each; row 2 has no target."""
    output, batch = output_of(NLL, STEPS), {"step_ids": STEPS}
    torch.testing.assert_close(TokenMean()(output, batch)["loss"], torch.tensor([16 / 5, 5.0, 0.0]))
    torch.testing.assert_close(Stepwise()(output, batch)["loss"], torch.tensor([6.0, 5.0, 0.0]))
    parts = Stepwise("sum", balance_coeff=0.1)(output, batch)
    torch.testing.assert_close(parts["steps"], torch.tensor([16.0, 5.0, 0.0]))
    torch.testing.assert_close(parts["balance"], torch.tensor([2.8, 0.0, 0.0]))
    torch.testing.assert_close(parts["loss"], torch.tensor([16.28, 5.0, 0.0]))
    with pytest.raises(ValueError, match="step_loss: seen 'mean', expected one of sum, step_mean"):
        Stepwise("mean")


def test_expert_load_by_hand() -> None:
    layers = [torch.tensor([4.0, 0.0]), torch.tensor([3.0, 3.0]), torch.tensor([1.0, 3.0])]
    assert expert_load(layers).item() == pytest.approx((2 + 1 + 1.5) / 3)
    assert expert_load([torch.zeros(3)]).item() == 0
