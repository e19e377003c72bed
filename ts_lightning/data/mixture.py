"""Several sources in fixed shares, by arithmetic: a batch depends on (seed, position) alone, as with one source."""

from collections.abc import Iterator, Sequence

import numpy as np

from ts_lightning.data.order import EpochOrder, StreamState, TrainStream, keys

BLOCK = 1000  # positions in which every source has its exact share; shares are realised to 1 / BLOCK


def quotas(weights: Sequence[float]) -> list[int]:
    """Positions of each source in a block: shares rounded by largest remainder, at least one each."""
    if not weights or min(weights) <= 0:
        raise ValueError(f"weight: seen {list(weights)}, expected numbers above 0")
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda s: (counts[s] - exact[s], s))
    for s in by_remainder[: BLOCK - sum(counts)]:
        counts[s] += 1
    if 0 in counts:
        raise ValueError(f"weight: seen {list(weights)}, expected each to be at least 1/{BLOCK} of their sum")
    return counts


def of_rows(weights: Sequence[float], questions: Sequence[int], rows: Sequence[int]) -> list[float]:
    """Weights by which rows are drawn so that questions come in the shares of `weights`, whatever a row holds."""
    return [weight * r / q for weight, q, r in zip(weights, questions, rows, strict=True)]


class MixedStream(TrainStream):
    """Global batches of a mixture. The k-th record drawn from a source is record k of its own endless order.

    So each source is gone through once before any of its records comes again, whatever the other sources do, and no
    position is dropped. `state.epoch` stays 0 and `samples_consumed` counts on; `len` is the number of batches in
    which as many records are drawn as all sources have together.
    """

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int] | np.ndarray],
        weights: Sequence[float],
        global_batch_size: int,
        state: StreamState,
        window: int,
    ) -> None:
        super().__init__(np.concatenate([np.asarray(s) for s in shard_sizes]), global_batch_size, state, window)
        self.sources = shard_sizes
        self.sizes = np.array([sum(sizes) for sizes in shard_sizes], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.quotas = np.array(quotas(weights), dtype=np.int64)
        self._orders: dict[tuple[int, int], EpochOrder] = {}

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        return epoch, position + self.global_batch_size

    def draws(self, endless: bool) -> Iterator[np.ndarray]:
        position = self.state.samples_consumed
        a_pass = len(self) * self.global_batch_size
        stop = (position // a_pass + 1) * a_pass
        while endless or position < stop:
            yield self.rows(position, self.global_batch_size)
            position += self.global_batch_size

    def rows(self, start: int, count: int) -> np.ndarray:
        """Draws (records of the sources counted one after the other) at positions start to start + count."""
        parts = []
        for block in range(start // BLOCK, (start + count - 1) // BLOCK + 1):
            sources, draws = self._block(block)
            first = max(0, start - block * BLOCK)
            chosen = slice(first, min(BLOCK, start + count - block * BLOCK))
            parts += [self._record(int(s), int(k)) for s, k in zip(sources[chosen], draws[chosen], strict=True)]
        return np.array(parts, dtype=np.int64)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and draw number of each position of a block."""
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)
        sources = sources[np.argsort(keys(BLOCK, self.state.seed, block, 2), kind="stable")]
        draws = np.empty(BLOCK, dtype=np.int64)
        for s, quota in enumerate(self.quotas):
            draws[sources == s] = block * quota + np.arange(quota)
        return sources, draws

    def _record(self, source: int, draw: int) -> int:
        epoch, place = divmod(draw, int(self.sizes[source]))
        if (source, epoch) not in self._orders:
            self._orders.pop((source, epoch - 2), None)
            seed = int(keys(1, self.state.seed, source, 3)[0] >> np.uint64(1))
            self._orders[source, epoch] = EpochOrder(self.sources[source], seed, epoch, self.window)
        return int(self.offsets[source]) + self._orders[source, epoch][place] + epoch * self.num_samples
