"""The watchdog by itself: whose marks count, in which commands it runs."""

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ts_lightning.runs.watchdog import EXIT_STATUS, FOLDER, Watchdog

HOOKS = ["on_fit_start", "on_validation_start", "on_test_start", "on_predict_start"]


def trainer(rank: int, run: str) -> Any:
    strategy = SimpleNamespace(broadcast=lambda _: run)
    return SimpleNamespace(global_rank=rank, global_step=7, strategy=strategy)


def test_marks_of_another_run_do_not_count(tmp_path: Path) -> None:
    old, dogs = Watchdog(tmp_path), [Watchdog(tmp_path), Watchdog(tmp_path)]
    old.on_fit_start(trainer(3, "earlier"), None)
    for rank, dog in enumerate(dogs):
        dog.on_fit_start(trainer(rank, "now"), None)
    (tmp_path / FOLDER / "rank-9.json").write_text("{}")
    assert [mark["rank"] for mark in dogs[0]._others()] == [1]
    for dog in (old, *dogs):
        dog.teardown(trainer(0, "now"), None, "fit")
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["rank-9.json"]  # each takes its own away


@pytest.mark.parametrize("hook", HOOKS)
def test_it_ends_every_command_that_is_stuck(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ended, statuses = threading.Event(), []

    def leave(status: int) -> None:
        statuses.append(status)
        dog._end.set()
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    dog = Watchdog(tmp_path, 0.2)
    getattr(dog, hook)(trainer(0, "now"), None)
    dog.on_validation_start(trainer(0, "now"), None)  # no second thread
    assert ended.wait(10)
    time.sleep(0.1)
    assert statuses == [EXIT_STATUS]
    assert "rank 0 (process " in capsys.readouterr().err
    assert json.loads((tmp_path / FOLDER / "rank-0.json").read_text())["step"] == 7
