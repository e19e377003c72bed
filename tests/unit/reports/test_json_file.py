"""Results as JSON."""

from pathlib import Path

from ts_lightning.reports.json_file import write_json


def test_a_result_is_strict_json_in_a_new_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "new/x.json", {"a": (1, float("nan")), 2: {"b": float("inf"), "c": 0.5}})
    text = (tmp_path / "new/x.json").read_text()
    assert text == '{\n "a": [\n  1,\n  null\n ],\n "2": {\n  "b": null,\n  "c": 0.5\n }\n}\n'
