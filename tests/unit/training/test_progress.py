"""The line that says where a run is."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts_lightning.training import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at(stream: io.StringIO, step: int, steps: int = 20, epochs: int | None = -1, **more: Any) -> Progress:
    progress = Progress(stream)
    names = {"train/loss": 2.5, "train/reward/total": torch.tensor(0.25).item(), "train/alpha": 0.5, "v_num": ""}
    trainer = SimpleNamespace(
        global_step=step, max_steps=steps, max_epochs=epochs, current_epoch=1, is_global_zero=True,
        progress_bar_metrics=names, loggers=[], sanity_checking=False, num_val_batches=[3, 2], **more,
    )  # fmt: skip
    progress.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return progress


def batch_ends(progress: Progress) -> None:
    progress.on_train_batch_end(progress.trainer, None, None, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epochs", "of"), [(-1, "?"), (None, "?"), (3, "3")])
def test_a_line_of_a_log_file(epochs: int | None, of: str) -> None:
    stream = io.StringIO()
    progress = at(stream, 12, epochs=epochs)
    batch_ends(progress)
    batch_ends(progress)  # soon after: no line
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(f"step 12 of 20, epoch 2 of {of}, loss 2.500, reward 0.250, alpha 0.500, ")
    progress = at(stream, 20)
    progress.shown = float("inf")
    batch_ends(progress)
    assert "step 20 of 20" in stream.getvalue()


def test_a_terminal_sees_every_step_in_one_line() -> None:
    stream = Terminal()
    progress = at(stream, 1)
    batch_ends(progress)
    batch_ends(progress)
    progress.on_validation_batch_end(progress.trainer, None, None, None, 1, 1)  # type: ignore[arg-type]
    assert stream.getvalue().count("\r") == 3
    assert stream.getvalue().rpartition("\r")[2].startswith("validation: suite 2 of 2, batch 2 of 2 ")
    progress.print("said")
    assert stream.getvalue().endswith("\nsaid\n")
    progress.disable()
    batch_ends(progress)
    assert stream.getvalue().endswith("\nsaid\n")
