"""How sure a score is: bootstrap intervals, and a paired test of two runs."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

RESAMPLES = 2000
Names = Sequence[Hashable]  # one a question


class Difference(NamedTuple):
    """`mean` of b - a over the same questions, its 95% interval, and the two-sided p of no difference."""

    mean: float
    low: float
    high: float
    p: float


def mean(values: Sequence[float], strata: Names | None = None) -> float:
    """The mean over questions; with `strata` the unweighted mean of the strata's means. NaN for no question."""
    values_N = torch.tensor(values, dtype=torch.float64)
    parts = _members(strata, len(values))
    return sum(values_N[rows].mean().item() for rows in parts) / len(parts)


def interval(
    values: Sequence[float], seed: int = 0, strata: Names | None = None, clusters: Names | None = None
) -> tuple[float, float]:
    """The 95% percentile interval of `mean` over clusters drawn with replacement, within each stratum.

    A cluster comes with all its questions, which is what keeps answers about one picture from counting as independent
    ones. Without `clusters` each question is one.
    """
    if not values:
        return float("nan"), float("nan")
    means = _means(torch.tensor(values, dtype=torch.float64), seed, strata, clusters)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def paired(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    strata: Names | None = None,
    clusters: Names | None = None,
) -> Difference:
    """The run b against the run a, question by question, drawn as `interval` does; ValueError for other lengths."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired test: seen {len(a)} and {len(b)} values, expected the same number of questions")
    differences = torch.tensor(b, dtype=torch.float64) - torch.tensor(a, dtype=torch.float64)
    means = _means(differences, seed, strata, clusters)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    tail = min((means <= 0).double().mean().item(), (means >= 0).double().mean().item())
    return Difference(mean(differences.tolist(), strata), low, high, min(1.0, 2 * tail))


def _members(names: Names | None, count: int) -> list[list[int]]:
    """The questions of each name, in order of appearance; all `count` of them where there are no names."""
    if names is None:
        return [[*range(count)]]
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name, []).append(i)
    return [*members.values()]


def _means(values_N: torch.Tensor, seed: int, strata: Names | None, clusters: Names | None) -> torch.Tensor:
    """`mean` of each resample: the questions' sum over their number, both of the clusters that were drawn."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(RESAMPLES, dtype=torch.float64)
    parts = _members(strata, len(values_N))
    for rows in parts:
        numbers: dict[Hashable, int] = {}
        of_N = torch.tensor([numbers.setdefault(i if clusters is None else clusters[i], len(numbers)) for i in rows])
        size_C = torch.bincount(of_N).double()
        sum_C = torch.zeros_like(size_C).index_add_(0, of_N, values_N[rows])
        count = len(numbers)
        for start in range(0, RESAMPLES, 10):  # ten at a time: of a long suite more would leave the cache
            drawn = torch.randint(count, (10, count), generator=generator)
            total[start : start + 10] += sum_C[drawn].sum(dim=1) / size_C[drawn].sum(dim=1) / len(parts)
    return total
