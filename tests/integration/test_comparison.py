"""TWIST against LoRA by one command: both train, the table has its columns, a second call trains nothing."""

import json
import sys
from pathlib import Path

import pytest

from tools.experiments import compare_lora


@pytest.mark.slow
def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shards", str(tmp_path / "shards"), "--train", "32", "--val", "4", "--steps", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--data.init_args.global_batch_size", "4"]
    quiet += ["--data.init_args.micro_batch_size", "4"]
    monkeypatch.setattr(sys, "argv", ["compare", *options, "--out", str(tmp_path / "out"), *quiet])
    assert compare_lora.main() == 0
    result = json.loads((tmp_path / "out/comparison.json").read_text())
    base, twist, lora = result["rows"]
    assert [row["run"] for row in result["rows"]] == ["base", "toy_twist", "lora_toy_equal"]
    assert abs(twist["trained"] - lora["trained"]) < 0.01 * twist["trained"]
    assert twist["steps"] == lora["steps"] == 1
    assert twist["forced"]["understanding/accuracy"] == base["forced"]["understanding/accuracy"]
    assert result["router"]["grounding"] == {"grounding -> grounding": 4}
    assert result["router"]["understanding"] == {"understanding -> understanding": 4}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("last.ckpt")}
    assert len(before) == 2
    assert compare_lora.main() == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert f"| toy_twist | {twist['trained']:,} | 1 |" in capsys.readouterr().out
