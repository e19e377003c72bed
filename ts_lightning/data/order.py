"""The order of training by arithmetic: a global batch depends on nothing but (seed, epoch, position)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

STATE_VERSION = 2  # 1 had no shuffle_window
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer on uint64 values: a fixed bijection, the same with every version of numpy."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(count: int, *salt: int) -> np.ndarray:
    """`count` pseudo-random uint64 numbers named by `salt`."""
    state = np.zeros(1, dtype=np.uint64)
    for value in salt:
        state = _mix(state + np.uint64((value + 1) * _GOLDEN & _MASK))
    return _mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int) -> np.ndarray:
    """A permutation [N] of the records: shards shuffled, then records within windows of `window` positions.

    A window bounds how far reads jump, so a page cache or a disk sees nearly sequential access.
    """
    starts = np.concatenate([[0], np.cumsum(shard_sizes)]).astype(np.int64)
    shards = np.argsort(keys(len(shard_sizes), seed, epoch, 0), kind="stable")
    order = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
    windows = np.arange(len(order)) // window
    return order[np.lexsort((keys(len(order), seed, epoch, 1), windows))]


@dataclass
class StreamState:
    """Where training stands: the same on all ranks, counted in records of the global batch after each step."""

    manifest_sha: str
    seed: int
    epoch: int = 0
    samples_consumed: int = 0
    shuffle_window: int | None = None  # unknown in states of version 1
    version: int = STATE_VERSION


class TrainStream:
    """Global batches of a training set, from any position on. `state` moves only by `advance`."""

    def __init__(self, shard_sizes: Sequence[int], global_batch_size: int, state: StreamState, window: int) -> None:
        self.shard_sizes = shard_sizes
        self.num_samples = sum(shard_sizes)
        self.global_batch_size = global_batch_size
        self.state = state
        self.window = window

    def __len__(self) -> int:
        """Global batches of a whole epoch; an incomplete last one is dropped."""
        return self.num_samples // self.global_batch_size

    def advance(self) -> None:
        """Count one global batch as trained."""
        self.state.epoch, self.state.samples_consumed = self._after(self.state.epoch, self.state.samples_consumed)

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        position += self.global_batch_size
        return (epoch, position) if position + self.global_batch_size <= self.num_samples else (epoch + 1, 0)

    def batches(self, endless: bool) -> Iterator[np.ndarray]:
        """Record numbers [global_batch_size] of every batch from `state` to the epoch's end, or for ever."""
        return (draws % self.num_samples for draws in self.draws(endless))

    def draws(self, endless: bool) -> Iterator[np.ndarray]:
        """As `batches`, but a record's number is `num_samples` higher each time that it comes again."""
        epoch, position = self.state.epoch, self.state.samples_consumed
        if position + self.global_batch_size > self.num_samples:  # a smaller batch size was used before
            epoch, position = epoch + 1, 0
        last = epoch
        while endless or epoch == last:
            order = epoch_order(self.shard_sizes, self.state.seed, epoch, self.window)
            now = epoch
            while now == epoch:
                yield order[position : position + self.global_batch_size] + now * self.num_samples
                epoch, position = self._after(epoch, position)


class MicroBatches:
    """This rank's micro-batches, draws as lists: the batch sampler of the training loader.

    Rank r owns rows r * share to (r + 1) * share of a global batch, cut into micro-batches in order: the
    micro-batches of one global batch are the same ones on any number of ranks.
    """

    def __init__(self, stream: TrainStream, micro_batch_size: int, rank: int, world_size: int, endless: bool) -> None:
        self.stream = stream
        self.micro_batch_size = micro_batch_size
        self.share = stream.global_batch_size // world_size
        self.rank = rank
        self.endless = endless

    @property
    def per_batch(self) -> int:
        return self.share // self.micro_batch_size

    def __len__(self) -> int:
        return len(self.stream) * self.per_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.stream.draws(self.endless):
            rows = batch[self.rank * self.share : (self.rank + 1) * self.share].tolist()
            for start in range(0, self.share, self.micro_batch_size):
                yield rows[start : start + self.micro_batch_size]


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """This rank's evaluation batches: each record once over all ranks, every rank the same number of batches.

    Batches that lack records are filled up with -1 (a padding row) where another rank still has some.
    """
    step = batch_size * world_size
    batches = []
    for start in range(0, num_samples, step):
        mine = range(start + rank * batch_size, min(start + (rank + 1) * batch_size, num_samples))
        batches.append(list(mine) or [-1])
    return batches
