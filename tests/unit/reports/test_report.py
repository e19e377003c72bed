"""The report of a run: its files, its table, its curves."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from ts_lightning.reports.report import lookup, read_history, smooth, table, write_report

REPORT = {
    "base": {"miou": 0.0123, "acc50": 0.0, "miou_large": math.nan, "unparsed": 0.98},
    "tuned": {
        **{"miou": 0.5512, "acc50": 0.607, "miou_large": math.nan, "unparsed": 0.25},
        **{"rule": "IoU >= 0.5", "parser": "lenient"},
    },
    "understanding": {"before": 0.8731, "after": 0.8731},
    "certificate": {
        "passed": True,
        "tensors_compared": 211,
        "differing": [],
        "logits": {"bitwise_equal": True, "max_abs_diff": 0.0},
    },
    "seconds": 552.3,
    "peak_rss_mb": 2103.4,
    "samples_per_second": 121.5,
}
HISTORY = """epoch,step,train/alpha,train/loss,val/rec/miou
0,0,0.5,3.0,
0,0,,,0.05
0,10,0.45,2.0,
0,20,0.4,nan,
0,20,,,0.5
"""


def test_what_the_base_says_in_words_stands_between() -> None:
    lines = table({**REPORT, "base_in_words": {"miou": 0.8, "acc50": 0.98}}).splitlines()
    assert lines[0].split() == ["base", "in", "words", "tuned"]
    assert ["known", "objects,", "mIoU", "0.012", "0.800", "0.551"] in [line.split() for line in lines]


def test_new_objects_steps_and_rejections_have_rows_of_their_own() -> None:
    tuned = {**REPORT["tuned"], "steps": {"step_recall": 0.7, "rejection_rate": 0.9, "false_rejection_rate": 0.01}}
    new = {"base": {"miou": 0.0, "acc50": 0.0}, "base_in_words": {"acc50": 0.25}, "tuned": {"miou": 0.5, "acc50": 0.64}}
    understanding = {**REPORT["understanding"], "routed": 0.87}
    report = {**REPORT, "tuned": tuned, "base_in_words": {"acc50": 0.98}, "new": new, "understanding": understanding}
    rows = {tuple(line.split()) for line in table(report).splitlines()}
    assert ("new", "objects,", "Acc@0.5", "0.000", "0.250", "0.640") in rows
    assert ("boxes", "of", "steps", "found", "-", "-", "0.700") in rows
    assert ("invalid", "questions", "rejected", "-", "-", "0.900") in rows
    assert ("understanding,", "task", "by", "the", "router", "-", "-", "0.870") in rows


def test_table_holds_the_numbers() -> None:
    lines = table(REPORT).splitlines()
    assert lines[0].split() == ["base", "tuned"]
    assert ["known", "objects,", "mIoU", "0.012", "0.551"] in [line.split() for line in lines]
    assert any(
        line.startswith("known objects, Acc@0.5 (IoU >= 0.5)") and line.split()[-2:] == ["0.000", "0.607"]
        for line in lines
    )
    unread = next(line for line in lines if line.startswith("no box could be read (lenient)"))
    assert unread.split()[-2:] == ["0.980", "0.250"]
    assert not any("new objects" in line for line in lines)  # none was asked for
    assert any("passed: 211 of 211 frozen tensors equal, logits bitwise equal" in line for line in lines)
    assert any(line.split() == ["time", "9", "min", "12", "s"] for line in lines)
    assert any(line.split() == ["training", "speed", "122", "samples/s"] for line in lines)


def test_a_run_that_logged_no_speed_says_so() -> None:
    lines = table({**REPORT, "samples_per_second": math.nan}).splitlines()
    assert any(line.split() == ["training", "speed", "too", "short", "to", "tell"] for line in lines)


def test_a_failed_certificate_is_loud() -> None:
    bad = {
        "passed": False,
        "tensors_compared": 3,
        "differing": ["x"],
        "logits": {"bitwise_equal": False, "max_abs_diff": 0.25},
    }
    assert "FAILED: 2 of 3 frozen tensors equal, logits differ by up to 0.25" in table({**REPORT, "certificate": bad})


def test_files(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "rec.png")
    history = tmp_path / "metrics.csv"
    history.write_text(HISTORY)
    assert write_report(tmp_path, REPORT, history) == table(REPORT)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["base"]["miou_large"] is None
    assert lookup(stored, "tuned.acc50") == 0.607
    text = (tmp_path / "report.md").read_text()
    assert table(REPORT) in text
    assert "(curves.png)" in text
    assert "(pictures/rec.png)" in text
    assert Image.open(tmp_path / "curves.png").width > 800


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seen no base\.acc50, certificate\.passed, expected base\.miou"):
        write_report(tmp_path, {**REPORT, "base": {"miou": 0.1}, "certificate": {}})


def test_history_and_smoothing(tmp_path: Path) -> None:
    history = tmp_path / "metrics.csv"
    history.write_text(HISTORY)
    columns = read_history(history)
    assert columns["train/loss"] == [(0, 3.0), (10, 2.0)]
    assert columns["val/rec/miou"] == [(0, 0.05), (20, 0.5)]
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0] * 3)
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.5 * 0.5 * 1 + 0.5 * 2) / 0.75)
