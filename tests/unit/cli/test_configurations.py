"""Configurations by name, from any folder, and overlays over what they name."""

import json
from pathlib import Path

import pytest
import yaml

from ts_lightning.cli.configurations import (
    SHIPPED,
    find_configuration,
    layers,
    named_configurations,
    read_configuration,
)


def test_a_shipped_name_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fit/toy_twist.yaml", "fit/toy_twist", "configs/fit/toy_twist.yaml"):
        assert find_configuration(name) == SHIPPED / "fit/toy_twist.yaml"
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit/toy_twist.yaml").write_text("{}")
    assert find_configuration("fit/toy_twist.yaml") == Path("fit/toy_twist.yaml")  # one's own file comes first
    with pytest.raises(FileNotFoundError, match=r"seen 'toy_twist', which is no file, expected .*fit/toy_twist.yaml"):
        find_configuration("toy_twist")


def test_an_overlay_brings_what_it_lies_over(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: [1, 2]}\n")
    (tmp_path / "middle.yaml").write_text(f"over: {tmp_path}/base.yaml\na: {{y: [3]}}\n")
    top = tmp_path / "top.yaml"
    top.write_text(f"over: {tmp_path}/middle.yaml\nb: 2\n")
    base, *above = layers(top)
    assert base == str(tmp_path / "base.yaml")
    assert [json.loads(text) for text in above] == [{"a": {"y": [3]}}, {"b": 2}]
    assert read_configuration(str(top)) == {"a": {"x": 1, "y": [3]}, "b": 2}
    words = named_configurations(["-c", str(top), "--config=fit/toy_full.yaml", "--trainer.max_steps", "3", "-c", "{}"])
    assert words[:6] == ["-c", base, "-c", above[0], "-c", above[1]]
    assert words[-4:] == ["--trainer.max_steps", "3", "-c", "{}"]


def test_an_overlay_over_itself_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"over: {path}\n")
    with pytest.raises(ValueError, match="lies over itself"):
        layers(path)


def test_every_shipped_overlay_names_a_shipped_configuration() -> None:
    for path in SHIPPED.glob("*/*.yaml"):
        over = yaml.safe_load(path.read_text()).get("over")
        assert over is None or (SHIPPED / over).is_file(), path
