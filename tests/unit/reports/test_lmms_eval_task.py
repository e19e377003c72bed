"""The task folders of lmms-eval: our questions in the data set's form, our figures from its hooks."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ts_lightning.cli.data.lmms_eval import lmms_eval
from ts_lightning.grounding.codecs import get_codec

ROOT = Path(__file__).parents[3]


def utils(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"utils_{folder.name}", folder / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("shard", "protocol", "reading", "columns"),
    [
        ("val_grounding-000000.tar", "rec", None, ("acc50", "acc50_strict")),
        ("val_grounding-000000.tar", "rec", "lmms_eval", ("acc50_strict", "acc50_lenient")),
        ("val_mirg-000000.tar", "mig", None, ("acc50", "acc50_strict")),
    ],
)
def test_right_answers_score_one_in_every_column(
    shard: str, protocol: str, reading: str | None, columns: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / protocol
    lmms_eval(str(ROOT / "data_shards/toy" / shard), protocol=protocol, reading=reading, out=folder, limit=4)
    text = (folder / f"{protocol}.yaml").read_text()
    settings: dict[str, Any] = yaml.safe_load(text.replace("!function ", ""))
    docs = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    hooks = utils(folder)
    assert 0 < len(docs) <= 4
    assert settings["generation_kwargs"]["until"] == []  # lmms-eval's own would end an answer at its first blank line
    assert {metric["metric"] for metric in settings["metric_list"]} == set(hooks.FIGURES) >= set(columns)
    right, wrong = [], []
    for doc in docs:
        assert "<image>" not in hooks.question(doc)
        assert [picture.mode for picture in hooks.pictures(doc)] == ["RGB"] * len(doc["pictures"])
        record = json.loads(doc["record"])
        image = record["truth"]["image"]
        codec = get_codec(record["codec"])
        said = codec.format([tuple(record["truth"]["box"])], tuple(record["sizes"][image or 0]))
        said = said if image is None else f"Image-{image + 1}: {said}"
        right.append(hooks.row(doc, [said]))
        wrong.append(hooks.row(doc, ["no box"]))
    for column in columns:
        aggregate = getattr(hooks, column)
        assert aggregate([row[column] for row in wrong]) == 0
        assert aggregate([row[column] for row in right]) == 1
    if reading == "lmms_eval":
        assert hooks.acc50_official([row["acc50"] for row in right]) == 0  # it reads numbers in [0, 1] alone


def test_the_task_knows_the_annotations(tmp_path: Path) -> None:
    shard, file = str(ROOT / "data_shards/toy/val_grounding-000000.tar"), tmp_path / "instances.json"
    lmms_eval(shard, protocol="rec", out=tmp_path / "task", limit=1, annotations=file)
    assert utils(tmp_path / "task").HOW["annotations"] == str(file)


def test_shards_without_such_questions_are_named(tmp_path: Path) -> None:
    shard = str(ROOT / "data_shards/toy/val_understanding-000000.tar")
    with pytest.raises(ValueError, match="seen none of its questions"):
        lmms_eval(shard, protocol="rec", out=tmp_path / "none")
