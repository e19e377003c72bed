"""Configurations by name, from any folder, and overlays over what they name."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from ts_lightning.cli import main
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


def test_an_overlays_callbacks_stand_in_place_of_those_below(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kept = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    rollout = {"class_path": "ts_lightning.rl.RolloutCallback", "init_args": {"num_generations": 4}}
    own = {"trainer": {"callbacks": [kept, rollout]}}  # as many as below, of the same classes
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"over": "fit/toy_mirg_grpo.yaml"} | own))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(own))
    below, plain = "fit/toy_mirg_grpo.yaml", str(tmp_path / "plain.yaml")
    for names in ([str(tmp_path / "mine.yaml")], [below, plain], [below, json.dumps(own)]):
        with pytest.raises(SystemExit):
            main(["fit", *(word for name in names for word in ("-c", name)), "--print_config"])
        checkpoint, rollouts = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
        assert (checkpoint["init_args"]["save_last"], checkpoint["init_args"]["every_n_train_steps"]) == (True, None)
        assert (rollouts["init_args"]["num_generations"], rollouts["init_args"]["rewards"]) == (4, None)
    assert read_configuration(str(tmp_path / "mine.yaml"))["trainer"]["callbacks"] == own["trainer"]["callbacks"]


def test_an_overlay_over_itself_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"over: {path}\n")
    with pytest.raises(ValueError, match="lies over itself"):
        layers(path)


def test_every_shipped_overlay_names_a_shipped_configuration() -> None:
    for path in SHIPPED.glob("*/*.yaml"):
        over = yaml.safe_load(path.read_text()).get("over")
        assert over is None or (SHIPPED / over).is_file(), path


def texts_of(path: Path, seen: set[Path]) -> Iterator[str]:
    """A configuration's text, and those of the docs and configurations that it names."""
    if path in seen:
        return
    seen.add(path)
    yield (text := path.read_text())
    if path.suffix == ".yaml":
        for name in re.findall(r"docs/\w+\.md|\w+\.yaml", text):
            named = SHIPPED.parents[1] / name if name.endswith(".md") else SHIPPED / "fit" / name
            if named.is_file():
                yield from texts_of(named, seen)


def made_by(text: str) -> Iterator[str]:
    """A shard of each kind that the commands in a text write."""
    for verb, words in re.findall(r"ts-lightning data (\w+) (.*)", re.sub(r"\\\n#? *", "", text)):
        out, prefix, style = (re.search(rf"--{name} (\S+)", words) for name in ("out", "prefix", "style"))
        if verb == "toy":
            names = ["train", "val_grounding", "val_new", "val_steps", "val_understanding"]
            names += ["mirg_train", "mirg_rl", "val_mirg"] * ("--mirg " in words)
            names += ["image_train", "region_train", "val_region"] * ("--regions " in words)
        elif verb == "generate":
            kind = words.split()[0].replace("-", "_")
            names = [f"mirg_{style[1] if style else 'trajectory'}" if kind == "mirg" else kind]
        else:
            names = [prefix[1]] if prefix else []
        yield from (f"{out[1]}/{name}-000000.tar" for name in names if out)


def patterns(sources: Any) -> Iterator[str]:
    """The patterns of shards in a part of a configuration."""
    if isinstance(sources, dict) and "shards" in sources:
        yield from [sources["shards"]] if isinstance(sources["shards"], str) else sources["shards"]
    elif isinstance(sources, dict):
        for source in sources.values():
            yield from patterns(source)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("fit/*.yaml")), ids=lambda path: path.stem)
def test_the_shards_of_a_run_are_made_by_a_command_that_it_names(path: Path) -> None:
    made = [shard for text in texts_of(path, set()) for shard in made_by(text)]
    data = read_configuration(str(path))["data"]["init_args"]
    for pattern in patterns({name: data.get(name) for name in ("train", "mix", "val")}):
        assert pattern == "@train" or any(fnmatch(shard, pattern) for shard in made), pattern
