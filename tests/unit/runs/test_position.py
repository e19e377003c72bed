"""Counters of a checkpoint, in whatever hook it was written, stand between two steps."""

from typing import Any

import pytest

from ts_lightning.runs.position import between_steps


def counts(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": started, "processed": processed, "completed": completed}


def saved(batches: tuple[int, ...], in_epoch: tuple[int, ...], epochs: tuple[int, ...], last: bool) -> dict[str, Any]:
    """A checkpoint after 6 steps, two epochs of 4 batches begun unless said otherwise."""
    progress = {"total": counts(*batches), "current": counts(*in_epoch), "is_last_batch": last}
    validated = {"total": counts(9, 9, 9, 8), "current": counts(2, 2, 1, 1), "is_last_batch": True}
    epoch = {"total": counts(*epochs), "current": counts(*epochs)}
    loops = {"epoch_loop.batch_progress": progress, "epoch_loop.val_loop.batch_progress": validated}
    loops |= {"epoch_progress": epoch, "epoch_loop.state_dict": {"_batches_that_stepped": 5}}
    return {"global_step": batches[2], "loops": {"fit_loop": loops}}


MID = ((6, 6, 6, 6), (2, 2, 2, 2), (2, 2, 1, 1))  # batches, batches in the epoch, epochs: after step 6 of 4 an epoch
BEGINS = ((8, 8, 8, 8), (0, 0, 0, 0), (2, 2, 2, 2))  # after step 8, the third epoch has not begun
ENDS = ((8, 8, 8, 8), (4, 4, 4, 4), (2, 2, 1, 1))  # after step 8, its validation is still to come
CASES = {
    "end of a step": (((6, 6, 6, 5), (2, 2, 2, 1), (2, 2, 1, 1), False), None, None, MID, True),
    "validation": ((*MID, False), True, None, MID, True),
    "next step": (((7, 6, 6, 6), (3, 2, 2, 2), (2, 2, 1, 1), True), False, None, MID, False),
    "end of the run": (((6, 6, 6, 6), (2, 2, 2, 2), (2, 2, 2, 2), False), False, None, MID, False),
    "end of the run's last epoch hook": (((6, 6, 6, 6), (2, 2, 2, 2), (2, 2, 2, 1), False), False, None, MID, False),
    "end of an epoch": (((8, 8, 8, 7), (4, 4, 4, 3), (2, 2, 1, 1), True), None, None, BEGINS, False),
    "end of an epoch with a validation": (((8, 8, 8, 7), (4, 4, 4, 3), (2, 2, 1, 1), True), None, 2, ENDS, True),
    "end of an epoch without one": (((8, 8, 8, 7), (4, 4, 4, 3), (2, 2, 1, 1), True), None, 3, BEGINS, False),
    "epoch hook": (((8, 8, 8, 8), (4, 4, 4, 4), (2, 2, 2, 1), True), False, None, BEGINS, False),
    "first batch of the next epoch": (
        *(((9, 8, 8, 8), (1, 0, 0, 0), (3, 3, 2, 2), False), False, None),
        *(((8, 8, 8, 8), (0, 0, 0, 0), (3, 3, 2, 2)), False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_moment_becomes_one_between_two_steps(name: str) -> None:
    given, follows, every, (batches, in_epoch, epochs), validates = CASES[name]
    checkpoint = saved(*given)
    between_steps(checkpoint, follows, every)
    loops = checkpoint["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"] == counts(*batches)
    assert loops["epoch_loop.batch_progress"]["current"] == counts(*in_epoch)
    assert loops["epoch_loop.batch_progress"]["is_last_batch"] == (in_epoch[0] == 4)
    assert loops["epoch_progress"]["total"] == loops["epoch_progress"]["current"] == counts(*epochs)
    whole = loops["epoch_loop.val_loop.batch_progress"]
    assert whole["current"] == counts(0, 0, 0, 0)
    assert whole["total"] == (counts(1, 1, 0, 0) if validates else counts(0, 0, 0, 0))
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == batches[0] - 1
