"""Scores of stored predictions, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from ts_lightning.metrics.scoring import read_predictions, score, score_table

TRUE = [0.0, 0.0, 0.5, 1.0]


def record(box: list[float] | None, status: str = "ok", **changes: Any) -> dict[str, Any]:
    truth = {"box": TRUE, "box_px": [0.0, 0.0, 50.0, 100.0], "answers": []}
    base = {
        "suite": "rec",
        "subtask": "rec",
        "key": "a",
        "text": "",
        "box": box,
        "parse_status": status,
        "truth": truth,
    }
    return {**base, **changes}


WORDS = {
    "suite": "vqa",
    "subtask": None,
    "box": None,
    "parse_status": "not_asked",
    "truth": {"box": None, "answers": ["red"]},
}
RECORDS = [
    record(TRUE, "several"),
    record([0.0, 0.0, 1.0, 1.0]),
    record(None, "unparsed", subtask="localization", truth={"box": TRUE, "box_px": [0, 0, 50, 100], "area_px": 9217.0}),
    record(**{**WORDS, "text": "Red."}),
    record(**{**WORDS, "text": "blue"}),
    record(**{**WORDS, "suite": "steps", "text": "Step 1: Find it [[1,1,9,9]]. Step 2: So the answer is red."}),
]


def test_score_by_hand() -> None:
    scores = score(RECORDS)
    assert sorted(scores) == ["rec", "rec/localization", "rec/rec", "steps", "vqa"]
    expected = {
        "miou": 0.5,
        "miou_medium": 0.75,
        "miou_large": 0.0,
        "acc50": 2 / 3,
        "unparsed": 1 / 3,
        "several": 1 / 3,
    }
    assert scores["rec"] == pytest.approx({"count": 3, **expected})
    assert scores["rec/rec"]["miou"] == 0.75
    assert scores["vqa"] == {"count": 2, "accuracy": 0.5}
    assert scores["steps"] == {"count": 1, "accuracy": 1.0}


def test_table_leaves_out_what_nothing_fills() -> None:
    lines = score_table(score(RECORDS[:2])).splitlines()
    assert lines[0].split() == ["suite", "count", "miou", "miou_medium", "acc50", "unparsed", "several"]
    assert lines[1].split() == ["rec", "2", "0.750", "0.750", "1.000", "0.000", "0.500"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + '{"suite": "rec"\n')
    with pytest.raises(
        ValueError, match=r"predictions.jsonl:2: seen '\{\"suite\": \"rec\"', expected a prediction record"
    ):
        read_predictions(path)
    path.write_text(json.dumps(RECORDS[0]) + "\n")
    assert read_predictions(path) == RECORDS[:1]
