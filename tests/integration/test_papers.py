"""A row of the papers' tables: it is trained and asked once, its figures and the right answers are kept."""

import json
from pathlib import Path

from tools.experiments.paper_rows import Bench, Row, Size, over
from tools.experiments.paper_tables.twist import TWIST, WORLD, asked


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
