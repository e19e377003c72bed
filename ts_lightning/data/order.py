"""The order of training by arithmetic: a global batch depends on nothing but (seed, epoch, position)."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STATE_VERSION = 2  # 1 had no shuffle_window
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer on uint64 values: a fixed bijection, the same with every version of numpy."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(count: int, *salt: int, start: int = 0) -> np.ndarray:
    """`count` pseudo-random uint64 numbers named by `salt`, from the `start`-th on."""
    state = np.zeros(1, dtype=np.uint64)
    for value in salt:
        state = _mix(state + np.uint64((value + 1) * _GOLDEN & _MASK))
    return _mix(state + np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))


class EpochOrder:
    """A permutation of N rows: shards shuffled, then rows within windows of `window` positions.

    A window bounds how far reads jump, so a page cache or a disk sees nearly sequential access. Nothing of length N is
    held: order[a:b] computes the windows that it touches (S numbers for the shards, `window` for a window).
    """

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, window: int) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        shards = np.argsort(keys(len(sizes), seed, epoch, 0), kind="stable")
        self._firsts = (np.cumsum(sizes) - sizes)[shards]  # row numbers at which the shuffled shards begin
        self._ends = np.cumsum(sizes[shards])  # positions at which they end
        self._salt, self._size = (seed, epoch, 1), window
        self._windows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice | int) -> Any:
        """Row numbers int64 at positions a to b, or the one at a position."""
        if isinstance(places, int):
            return int(self._window(places // self._size)[places % self._size])
        start, stop, _ = places.indices(len(self))
        parts = [self._window(w) for w in range(start // self._size, max(start, stop - 1) // self._size + 1)]
        first = start - start // self._size * self._size
        return np.concatenate(parts)[first : first + max(0, stop - start)]

    def shards(self, start: int, stop: int) -> list[int]:
        """Places in the shuffled list of the shards that positions start to stop may touch: whole windows."""
        first, last = start // self._size * self._size, -(-stop // self._size) * self._size - 1
        return list(range(self._slot(first), self._slot(min(last, len(self) - 1)) + 1))

    def _slot(self, position: int) -> int:
        return int(np.searchsorted(self._ends, position, "right"))

    def _window(self, w: int) -> np.ndarray:
        if w not in self._windows:
            start = w * self._size
            positions = np.arange(start, min(start + self._size, len(self)))
            slots = np.searchsorted(self._ends, positions, "right")
            begins = np.concatenate([[0], self._ends[:-1]])[slots] if len(positions) else positions
            rows = self._firsts[slots] + positions - begins
            order = np.argsort(keys(len(positions), *self._salt, start=start), kind="stable")
            while len(self._windows) > 1:  # two: a batch may lie across an edge
                self._windows.pop(next(iter(self._windows)))
            self._windows[w] = rows[order]
        return self._windows[w]


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
    """Global batches of a training set, from any position on. `state` moves only by `advance`.

    A batch is trained `repeats` times in a row; `served` counts how often the one at `state` has been.
    """

    repeats: int = 1
    served: int = 0

    def __init__(
        self, shard_sizes: Sequence[int] | np.ndarray, global_batch_size: int, state: StreamState, window: int
    ) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self.shard_sizes.sum())
        self.global_batch_size = global_batch_size
        self.state = state
        self.window = window

    def __len__(self) -> int:
        """Global batches of a whole epoch; an incomplete last one is dropped."""
        return self.num_samples // self.global_batch_size

    def advance(self) -> None:
        """Count one training of a global batch; the state moves on after its last one."""
        self.served += 1
        if self.served < self.repeats:
            return
        self.served = 0
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
            order = EpochOrder(self.shard_sizes, self.state.seed, epoch, self.window)
            now = epoch
            while now == epoch:
                yield order[position : position + self.global_batch_size] + now * self.num_samples
                epoch, position = self._after(epoch, position)


class Shares:
    """This rank's share of every global batch, draws as lists: the batch sampler of the training loader.

    Rank r owns rows r * share to (r + 1) * share of a global batch; `per_batch` micro-batches are made of them.
    `announce` is told of draws before they are read.
    """

    def __init__(
        self,
        stream: TrainStream,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        endless: bool,
        announce: Callable[[np.ndarray], object] | None = None,
    ) -> None:
        self.stream = stream
        self.micro_batch_size = micro_batch_size
        self.share = stream.global_batch_size // world_size
        self.rank = rank
        self.endless = endless
        self.announce = announce

    @property
    def per_batch(self) -> int:
        return self.share // self.micro_batch_size

    def __len__(self) -> int:
        return len(self.stream) * self.stream.repeats

    def __iter__(self) -> Iterator[list[int]]:
        left = self.stream.repeats - self.stream.served
        for batch in self._announced(self.stream.draws(self.endless)):
            rows = batch[self.rank * self.share : (self.rank + 1) * self.share].tolist()
            for _ in range(left):
                yield rows
            left = self.stream.repeats

    def _announced(self, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The batches; this rank's rows of each are announced a window of the order before it comes."""
        if self.announce is None:
            yield from batches
            return
        ahead: deque[np.ndarray] = deque()
        count = -(-self.stream.window // self.stream.global_batch_size) + 1
        for batch in batches:
            self.announce(batch[self.rank * self.share : (self.rank + 1) * self.share])
            ahead.append(batch)
            if len(ahead) > count:
                yield ahead.popleft()
        yield from ahead


class EvalBatches:
    """This rank's evaluation batches: each record once over all ranks, every rank the same number of batches.

    Batches that lack records are filled up with -1 (a padding row) where another rank still has some.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        self.num_samples, self.batch_size, self.rank = num_samples, batch_size, rank
        self.step = batch_size * world_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.step)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.rank * self.batch_size, len(self) * self.step, self.step):
            yield list(range(start, min(start + self.batch_size, self.num_samples))) or [-1]
