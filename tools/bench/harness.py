"""What every benchmark shares: variants interleaved in one process, medians of ratios, one JSON line at the end."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]


def interleave(
    variants: Mapping[str, Step], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each variant per round, after a round of warm-up; every second round runs in reverse order.

    `time.process_time` as the clock counts this process's own work on a machine that others use too.

    Who runs after whom matters: a step inherits the caches and the heap that the one before it left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        order = list(variants.items())
        for name, step in order if number % 2 else order[::-1]:
            _synchronise()
            start = clock()
            step()
            _synchronise()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Median over the rounds of ours / peer; both sides of one quotient ran next to each other."""
    return round(statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)), 3)


def spread(seconds: Mapping[str, list[float]], ours: str, peer: str) -> list[float]:
    """The smallest and the largest of the quotients whose median `ratio` gives."""
    quotients = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
    return [round(min(quotients), 3), round(max(quotients), 3)]


def relative_error(seen: Tensor, expected: Tensor) -> float:
    """|seen - expected| / |expected|, as 2-norms in float64."""
    seen, expected = seen.detach().double(), expected.detach().double()
    return ((seen - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def saved_bytes(forward: Step, weights: Iterable[Tensor]) -> int:
    """Bytes that `forward` keeps for backward, each storage once, the weights' own left out."""
    ignored = {weight.untyped_storage().data_ptr() for weight in weights}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its address could be used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storages.values())


def report(name: str, correct: bool, **figures: Any) -> int:
    """Print the one JSON line; return the exit status, 1 when the check before the timing failed."""
    print(json.dumps({"name": name, **figures, "correct": correct}), flush=True)
    return 0 if correct else 1


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
