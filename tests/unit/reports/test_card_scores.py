"""Figures for a card: from JSON of any nesting, and from the run of a checkpoint."""

import json
from pathlib import Path

import pytest

from ts_lightning.reports.card_scores import own_scores, read_scores


def test_nested_numbers_get_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = {"tuned": {"miou": 0.5, "rule": "IoU >= 0.5", "steps": {"answer_acc": 1}}, "passed": True, "n": None}
    path.write_text(json.dumps({**report, "differing": [3], "seconds": 2.5}))
    assert read_scores(path) == {"tuned.miou": 0.5, "tuned.steps.answer_acc": 1.0, "seconds": 2.5}


@pytest.mark.parametrize("text", ["[0.5]", "0.5", '{"miou": "0.5"}', "{}", "miou: 0.5", '{"a": 1' + "0" * 400 + "}"])
def test_other_shapes_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^scores .*scores\.json: seen no .*, expected an object of numbers"):
        read_scores(path)


def test_what_lies_in_no_run_has_no_scores(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/toy/miou\n0,0.5\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x.ckpt").write_bytes(b"x")
    assert own_scores(tmp_path / "folder/x.ckpt") == {}
    assert own_scores(tmp_path / "folder") == {}
