"""What the ranks of a run do when they are told to stop."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ts_lightning.runs import signals
from ts_lightning.runs.signals import StopOnSignal, Stopped


@pytest.mark.parametrize(("rank", "expected"), [(0, ["save", "requeue", "barrier"]), (1, ["save", "barrier"])])
def test_no_rank_ends_before_the_job_is_requeued(
    rank: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun --kill-on-bad-exit=1 kills the other ranks when the first one ends."""
    did: list[str] = []
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"),
        reduce=lambda asked, reduce_op: torch.tensor(float(signal.SIGUSR1)),
        barrier=lambda name: did.append("barrier"),
    )
    trainer = SimpleNamespace(
        world_size=2,
        is_global_zero=rank == 0,
        global_step=3,
        strategy=strategy,
        save_checkpoint=lambda path, weights_only: did.append("save"),
    )
    monkeypatch.setattr(signals, "requeue", lambda: did.append("requeue"))
    handler = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(Stopped) as stop:
            StopOnSignal(tmp_path).on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert stop.value.code == 128 + signal.SIGUSR1
    assert did == expected
