"""A row of the papers' tables: it is trained and asked once, its figures and the right answers are kept."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tools.experiments.paper_rows import Bench, Row, Size, over
from tools.experiments.paper_tables.twist import TWIST, WORLD, asked
from tools.experiments.papers import DOCS
from ts_lightning.cli import main


def test_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "shards", tmp_path / "out", tmp_path / "results", Size(0.001, 1))
    small = over(TWIST.changes, {"data": {"init_args": {"global_batch_size": 4, "micro_batch_size": 4}}})
    row = Row("TWIST", TWIST.config, small)
    first = bench.measured("1", WORLD, row, 0)
    assert set(first["right"]) == set(WORLD.suites)
    assert {name: len(right) for name, right in first["right"].items()} == {
        "known": 8, "new": 8, "steps": 4, "understanding": 8,
    }  # fmt: skip
    assert first["figures"]["understanding/accuracy"] == first["right"]["understanding"].count("1") / 8
    assert first["steps"] == 1
    checkpoints = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")}
    assert bench.measured("1", WORLD, row, 0) == first
    bench.measured("router", WORLD, asked(row, "the router's", "", task="auto"), 0)  # the same run, asked again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.ckpt")} == checkpoints
    assert len(checkpoints) == 1
    lines = [json.loads(line) for path in (tmp_path / "results").glob("*.jsonl") for line in path.open()]
    assert [line["row"] for line in lines] == ["TWIST", "the router's"]


def test_commands_of_the_page_at_full_size_are_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"`ts-lightning (fit [^`]* --[^`]*)`", DOCS.read_text())
    assert len(commands) > 5
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(command), "--print_config"])
        assert end.value.code == 0, command
    assert "step_loss: sum" in capsys.readouterr().out
