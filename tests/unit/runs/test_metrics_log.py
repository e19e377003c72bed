"""The log of a run over restarts, and metrics.csv that is made of it."""

import csv
import errno
import json
import os
from pathlib import Path

import pytest
import torch

from ts_lightning.runs.metrics_log import (
    FINISHED,
    RESUMED,
    MetricsLog,
    complete_table,
    finished_steps,
    read_metrics,
    table,
)
from ts_lightning.runs.run_lock import RunLock


def log(folder: Path, rows: list[tuple[int, dict[str, float]]]) -> MetricsLog:
    logger = MetricsLog(folder)
    for step, row in rows:
        logger.log_metrics(row, step)
    return logger


def test_the_last_value_of_a_step_counts(tmp_path: Path) -> None:
    log(
        tmp_path, [(0, {"train/a": 1.0}), (1, {"train/a": torch.tensor(2.0)}), (1, {"val/b": 3.0}), (2, {"train/a": 9})]
    )
    assert read_metrics(tmp_path) == [
        {"step": 0, "train/a": 1.0},
        {"step": 1, "train/a": 2.0},
        {"step": 1, "val/b": 3.0},
        {"step": 2, "train/a": 9},
    ]
    log(tmp_path, []).mark(RESUMED, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 1]
    log(tmp_path, [(1, {"val/b": 4.0}), (2, {"train/a": 5.0, "train/c": 6.0}), (2, {"lr": 0.1})])
    assert read_metrics(tmp_path)[2:] == [
        {"step": 1, "val/b": 4.0},
        {"step": 2, "train/a": 5.0, "train/c": 6.0, "lr": 0.1},
    ]


def test_a_row_that_a_save_has_written_is_not_written_again(tmp_path: Path) -> None:
    """ModelCheckpoint saves, twice with save_last, before Lightning writes the step's row."""
    saved = {"train/a": 1.0, "train/speed": 7.0, "epoch": 0}
    logger = log(tmp_path, [(0, saved), (0, saved), (0, {"epoch": 0, "train/a": torch.tensor(1.0)})])
    logger.log_metrics({"train/a": 1.0, "epoch": 0}, 1)
    logger.log_metrics({"train/a": 2.0, "epoch": 0}, 1)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 1]


def test_the_table_is_made_at_the_end(tmp_path: Path) -> None:
    logger = log(tmp_path, [(1, {"train/a": 1.5, "epoch": 0}), (0, {"train/a": 2.0, "epoch": 0}), (1, {"val/b": 0.5})])
    assert not (tmp_path / "metrics.csv").exists()
    logger.finalize("success")
    expected = "step,epoch,train/a,val/b\n0,0,2.0,\n1,0,1.5,\n1,,,0.5\n"
    assert (tmp_path / "metrics.csv").read_text() == expected
    assert table(read_metrics(tmp_path / "metrics.csv")) == expected  # the log is read, where there is one
    (tmp_path / "metrics.jsonl").unlink()
    assert table(read_metrics(tmp_path)) == expected


def test_no_line_keeps_a_log_from_being_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that a crash cut off, bytes that are no text, deep JSON, text for numbers, other values."""
    good = log(tmp_path, [(0, {"train/a": 1.0})])
    bad = [b'{"step": 1, "tr', b"\xff\xfe", b"[" * 100_000, b'{"step": "x", "a": 1}', b'{"step": 1, "a": "b"}', b"7"]
    bad += [
        b'{"step": -1}',
        b'{"resumed_after": "x"}',
        b'{"step": true}',
        b'{"a": 1.0}',
        b"{" + b'"a":' * 2000,
        b"null",
    ]
    with good.path.open("ab") as file:
        file.write(b"\n".join(bad))
    good.log_metrics({"train/a": 2.0}, 1)
    assert read_metrics(tmp_path) == [{"step": 0, "train/a": 1.0}, {"step": 1, "train/a": 2.0}]
    assert f"metrics.jsonl: {len(bad)} lines that can't be read are left out (the first is line 2)" in caplog.text


def test_no_row_keeps_a_table_from_being_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/a,val/b\n0,1.5,\nx,2.0,\n1,,0.5\n2,\xff,\n3,1,2,3\n4,2.")
    assert read_metrics(path) == [{"step": 0, "train/a": 1.5}, {"step": 1, "val/b": 0.5}]
    assert "metrics.csv: 3 rows that can't be read" in caplog.text


def test_the_table_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/a\n0,1.5\n1,2.5\n2,3.5\n")
    logger = MetricsLog(tmp_path)
    logger.mark(RESUMED, 2)
    logger.log_metrics({"train/a": 4.5}, 2)
    logger.finalize("success")
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["train/a"] for row in csv.DictReader(file)] == ["1.5", "2.5", "4.5"]


def test_it_knows_whether_the_run_was_finished(tmp_path: Path) -> None:
    assert finished_steps(tmp_path) is None
    logger = log(tmp_path, [(0, {"train/a": 1.0})])
    assert finished_steps(tmp_path) is None
    logger.mark(FINISHED, 4)
    assert finished_steps(tmp_path) == 4
    logger.mark(RESUMED, 4)
    assert finished_steps(tmp_path) is None


def test_a_replaced_owner_adds_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(tmp_path)
    logger = MetricsLog(tmp_path, lock)
    lock.acquire()
    logger.log_metrics({"a": 1.0}, step=0)
    (tmp_path / "run.lock").write_text(json.dumps(lock.me | {"token": "another", "job": "7"}))
    with pytest.raises(ValueError, match="taken over by job 7"):
        logger.log_metrics({"a": 2.0}, step=1)
    logger.finalize("failed")
    assert [row["step"] for row in read_metrics(tmp_path)] == [0]


def test_a_full_disk_is_named_and_leaves_a_log_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, real, room = log(tmp_path, [(0, {"train/a": 1.0})]), os.write, [9]

    def write(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(file, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=r"metrics\.jsonl: not written \(No space left on device\)"):
        logger.log_metrics({"train/a": 2.0}, 1)
    monkeypatch.undo()
    logger.log_metrics({"train/a": 2.0}, 1)
    assert [row["train/a"] for row in read_metrics(tmp_path)] == [1.0, 2.0]


def test_a_log_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: seen something that is no file"):
        log(tmp_path, [(0, {"a": 1.0})])


def test_a_table_that_a_full_disk_kept_away_is_made_once(tmp_path: Path) -> None:
    complete_table(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.5}\n')
    complete_table(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,a\n1,,2.5\n"
    (tmp_path / "metrics.csv").write_text("kept")
    complete_table(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "kept"
