"""Parts of -m tests.reliability that are quick to check: what it counts, what it compares, how items are named."""

import sys
import time
from pathlib import Path

import pytest

from tests.reliability.__main__ import main
from tests.reliability.kills import interrupted, saves
from tests.reliability.streams import compare_rows


def test_a_kill_counts_when_it_came_before_the_end(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def work() -> None:
        time.sleep(0.2)
        ended.touch()

    assert interrupted(work, 0.01) is None
    assert not ended.exists()
    seconds = interrupted(work, None)
    assert seconds is not None
    assert seconds > 0  # the parent may look at its clock after the child began
    assert ended.exists()
    assert interrupted(lambda: None, 0.5) is not None


def test_every_save_is_killed(tmp_path: Path) -> None:
    figures = saves(tmp_path, 6)
    assert figures["loaded_the_old"] + figures["loaded_the_new"] == figures["kills"] == 6


@pytest.mark.parametrize("column", ["train/loss", "train/skipped_steps", "val/toy/miou", "step"])
def test_runs_are_compared_in_every_column(column: str) -> None:
    row = {"step": "4", "train/loss": "1.5", "train/skipped_steps": "0", "val/toy/miou": "0.25"}
    assert compare_rows([row], [row | {column: f"{float(row[column]) + 5e-7}"}]) == pytest.approx(5e-7)
    with pytest.raises(AssertionError, match=f"{column} of step 4"):
        compare_rows([row], [row | {column: f"{float(row[column]) + 1e-5}"}])
    with pytest.raises(AssertionError, match=column):
        compare_rows([row], [row | {column: ""}])


def test_two_is_another_name_of_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["reliability", "2", "x"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "seen x, expected all or some of 1, 3" in capsys.readouterr().err
