"""The order against a slow reference, and streams over ranks, workers and resumes."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest

from ts_lightning.data.order import EpochOrder, EvalBatches, Shares, StreamState, TrainStream

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_order(sizes: list[int], seed: int, epoch: int, window: int) -> list[int]:
    """The same permutation with Python integers and lists."""

    def keys(count: int, salt: int) -> list[int]:
        state = 0
        for value in (seed, epoch, salt):
            state = mix((state + (value + 1) * GOLDEN) & MASK)
        return [mix((state + k * GOLDEN) & MASK) for k in range(1, count + 1)]

    shard_keys = keys(len(sizes), 0)
    order = []
    for s in sorted(range(len(sizes)), key=shard_keys.__getitem__):
        order += range(sum(sizes[:s]), sum(sizes[: s + 1]))
    row_keys = keys(len(order), 1)
    places = sorted(range(len(order)), key=lambda p: (p // window, row_keys[p]))
    return [order[p] for p in places]


def stream(sizes=(5, 1, 7, 10), batch=4, seed=3, epoch=0, consumed=0, window=6) -> TrainStream:
    return TrainStream(list(sizes), batch, StreamState("sha", seed, epoch, consumed), window)


@pytest.mark.parametrize("seed", [0, 3, 2**40])
def test_order_is_the_written_down_permutation(seed):
    for epoch in range(3):
        order = EpochOrder([5, 1, 7, 10], seed, epoch, window=6)
        assert order[:].tolist() == slow_order([5, 1, 7, 10], seed, epoch, window=6)
        assert sorted(order) == list(range(23))


def test_order_is_pinned_for_ever():
    assert EpochOrder([3, 5], 0, 0, 4)[:].tolist() == [6, 4, 3, 5, 2, 1, 0, 7]


def test_any_part_of_the_order_is_the_same_as_the_whole():
    whole = EpochOrder([5, 1, 0, 7, 10], 3, 1, window=6)[:].tolist()
    for start in range(24):
        for stop in range(start, 24):
            assert EpochOrder([5, 1, 0, 7, 10], 3, 1, window=6)[start:stop].tolist() == whole[start:stop]
    assert list(EpochOrder([5, 1, 0, 7, 10], 3, 1, window=6)) == whole


def test_a_thousand_million_rows_are_ordered_without_being_held():
    tracemalloc.start()
    order = EpochOrder(np.full(100_000, 10_000), 0, 0, 16384)
    part = order[123_456_789:123_456_889]
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    assert len(order) == 1_000_000_000
    assert len(set(part.tolist())) == 100
    assert len({int(row) // 10_000 for row in order[123_453_440 : 123_453_440 + 16384]}) <= 3  # one window
    assert len(order.shards(0, 64)) == 2  # what a first batch needs: 16,384 rows of shards of 10,000


def test_epochs_and_seeds_differ_and_windows_bound_the_jumps():
    orders = [EpochOrder([100] * 10, seed, epoch, 100)[:].tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    for window in np.array(orders[0]).reshape(10, 100):
        assert len({row // 100 for row in window}) == 1  # windows as long as shards: one shard at a time


@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (1, 4), (2, 3), (3, 4), (4, 1), (6, 2)])
def test_a_global_batch_is_the_same_on_any_number_of_ranks(world_size, micro):
    expected = [batch.tolist() for batch in stream(batch=12, sizes=[40]).batches(endless=False)]
    assert len(expected) == 3
    ranks = [list(Shares(stream(batch=12, sizes=[40]), micro, r, world_size, False)) for r in range(world_size)]
    assert all(len(rank) == 3 for rank in ranks)
    assert Shares(stream(batch=12, sizes=[40]), micro, 0, world_size, False).per_batch == 12 // world_size // micro
    for b, batch in enumerate(expected):
        assert [row for rank in ranks for row in rank[b]] == batch


def test_each_record_once_an_epoch_with_stops_and_a_new_batch_size():
    seen: list[int] = []
    one = stream(batch=4)
    for _, batch in zip(range(3), one.batches(endless=False), strict=False):
        seen += batch.tolist()
        one.advance()
    assert (one.state.epoch, one.state.samples_consumed) == (0, 12)
    other = stream(batch=2, consumed=12)
    for batch in other.batches(endless=False):
        seen += batch.tolist()
        other.advance()
    assert (other.state.epoch, other.state.samples_consumed) == (1, 0)
    assert seen == EpochOrder([5, 1, 7, 10], 3, 0, 6)[:].tolist()[:22]  # 23 records: the odd one is dropped


def test_a_resumed_stream_goes_on_into_the_next_epoch():
    one = stream(batch=10)  # two batches an epoch
    batches = [batch.tolist() for _, batch in zip(range(6), one.batches(endless=True), strict=False)]
    for step in range(6):
        assert next(iter(one.batches(endless=True))).tolist() == batches[step]
        assert (one.state.epoch, one.state.samples_consumed) == (step // 2, step % 2 * 10)
        one.advance()
    rest = stream(batch=10, epoch=1, consumed=10)
    assert [batch.tolist() for batch in rest.batches(endless=False)] == [batches[3]]


def test_a_larger_batch_than_what_is_left_starts_the_next_epoch():
    late = stream(batch=8, consumed=18)  # 5 records left
    assert next(iter(late.batches(endless=False))).tolist() == EpochOrder([5, 1, 7, 10], 3, 1, 6)[:].tolist()[:8]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_each_record_once_and_ranks_have_equally_many_batches(count, world_size):
    ranks = [EvalBatches(count, 4, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for batch in batches for row in batch if row >= 0]
    assert sorted(rows) == list(range(count))
    assert all(batch for batches in ranks for batch in batches)


def test_a_batch_is_served_several_times_and_the_state_moves_on_after_the_last() -> None:
    """Five records, batches of two, each three times; two ranks; a state in the middle goes on there."""
    stream = TrainStream([5], 2, StreamState("m", 0), 10)
    stream.repeats = 3
    rows = [record for (record,) in islice(Shares(stream, 1, 1, 2, True), 7)]
    assert rows[0] == rows[1] == rows[2] != rows[3] == rows[4] == rows[5]
    for step in range(4):
        assert (stream.state.samples_consumed, stream.served) == (step // 3 * 2, step % 3)
        stream.advance()
    rest = [record for (record,) in islice(Shares(stream, 1, 1, 2, True), 3)]
    assert rest == rows[4:7]
