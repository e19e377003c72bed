"""How sure a score is: bootstrap intervals, and a paired test of two runs."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

RESAMPLES = 2000
Strata = Sequence[Hashable]  # one name a question


class Difference(NamedTuple):
    """`mean` of b - a over the same questions, its 95% interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def mean(values: Sequence[float], strata: Strata | None = None) -> float:
    """The mean over questions; with `strata` the unweighted mean of the strata's means. NaN for no question."""
    parts = _parts(torch.tensor(values, dtype=torch.float64), strata)
    return sum(part.mean().item() for part in parts) / len(parts)


def interval(values: Sequence[float], seed: int = 0, strata: Strata | None = None) -> tuple[float, float]:
    """The 95% percentile interval of `mean` over questions drawn with replacement, within each stratum."""
    if not values:
        return float("nan"), float("nan")
    means = _means(_parts(torch.tensor(values, dtype=torch.float64), strata), seed)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired(a: Sequence[float], b: Sequence[float], seed: int = 0, strata: Strata | None = None) -> Difference:
    """The run b against the run a, question by question; ValueError for lists of other lengths."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired test: seen {len(a)} and {len(b)} values, expected the same number of questions")
    differences = torch.tensor(b, dtype=torch.float64) - torch.tensor(a, dtype=torch.float64)
    means = _means(_parts(differences, strata), seed)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    tail = min((means <= 0).double().mean().item(), (means >= 0).double().mean().item())
    return Difference(mean(differences.tolist(), strata), low, high, min(1.0, 2 * tail))


def _parts(values_N: torch.Tensor, strata: Strata | None) -> list[torch.Tensor]:
    if strata is None:
        return [values_N]
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(strata):
        members.setdefault(name, []).append(i)
    return [values_N[rows] for rows in members.values()]


def _means(parts: Sequence[torch.Tensor], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(RESAMPLES, dtype=torch.float64)
    for values_N in parts:
        count = len(values_N)
        for start in range(0, RESAMPLES, 100):  # a hundred at a time: memory stays small for long suites
            drawn = torch.randint(count, (min(100, RESAMPLES - start), count), generator=generator)
            total[start : start + 100] += values_N[drawn].mean(dim=1) / len(parts)
    return total
