"""How sure a score is: bootstrap intervals, and a paired test of two runs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

RESAMPLES = 2000


class Difference(NamedTuple):
    """`mean` of b - a over the same questions, its 95% interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean over questions drawn with replacement; NaN for no question."""
    if not values:
        return float("nan"), float("nan")
    means = _means(torch.tensor(values, dtype=torch.float64), seed)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """The run b against the run a, question by question; ValueError for lists of other lengths."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired test: seen {len(a)} and {len(b)} values, expected the same number of questions")
    differences = torch.tensor(b, dtype=torch.float64) - torch.tensor(a, dtype=torch.float64)
    means = _means(differences, seed)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    tail = min((means <= 0).double().mean().item(), (means >= 0).double().mean().item())
    return Difference(differences.mean().item(), low, high, min(1.0, 2 * tail))


def _means(values_N: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.empty(RESAMPLES, dtype=torch.float64), len(values_N)
    for start in range(0, RESAMPLES, 100):  # a hundred at a time: memory stays small for long suites
        drawn = torch.randint(count, (min(100, RESAMPLES - start), count), generator=generator)
        total[start : start + 100] = values_N[drawn].mean(dim=1)
    return total
