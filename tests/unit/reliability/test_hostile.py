"""Input from a stranger: each piece is refused in one line that says what it is, and nothing of it runs."""

import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import get_loader

from tests.reliability import hostile_files
from ts_lightning.models.lora import read_adapter
from ts_lightning.models.package import read_config
from ts_lightning.reports.suite_report import write_suite_report
from ts_lightning.rl.rewards import load_rewards
from ts_lightning.runs import CheckpointIO
from ts_lightning.runs.load import folder_model, stored_model
from ts_lightning.runs.yaml_loader import _load

EXPECTED = {
    ".. by a PAX header": r"member '\.\./\.\./up\.json': seen an unsafe name",
    "sparse member": "seen a link or device",
    "sparse by a PAX header": "seen a file with holes",
    "size below zero": "in a header, expected an octal number",
    "huge declared size": "the tar is cut",
    "JSON of 6 GB": "seen 6442450944 bytes, expected at most 2097152",
    "bomb in a text": "too large",
    "bomb in a profile": "too large",
    "class of a checkpoint": "'evil_module.Evil' is not allowed",
    "Lightning's instantiator": "'os.system' is not allowed",
    "compressed checkpoint": "seen 40000240 bytes inside",
    "pickled weights": "no file named model.safetensors",
    "pickled weights of a part": "seen pickled weights",
    "tokenizer with code": "custom code",
    "class of a standalone folder": "'evil_module.Evil' is not allowed",
}


def test_files_of_a_stranger(tmp_path: Path) -> None:
    hit = tmp_path / "HIT"
    attempts = hostile_files.tars(tmp_path, hit) | hostile_files.pictures()
    attempts |= hostile_files.checkpoints(tmp_path, hit) | hostile_files.folders(tmp_path, hit)
    assert attempts.keys() > EXPECTED.keys()
    for name, attempt in attempts.items():
        with pytest.raises(ValueError, match=EXPECTED.get(name, "seen|expected")) as error:
            attempt()
        assert "\n" not in str(error.value), name
        assert not hit.exists(), name


def grown(levels: int) -> str:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(["a0: &a0 [x, x]", *lines])


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (grown(11), "values with its aliases written out"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("{a: " * 101 + "1" + "}" * 101, "nested more than 100 deep"),
        ("a: &a [1, *a]", "an alias inside of what it names"),
        ("a: !!python/object/apply:os.abort []", "could not determine a constructor"),
        ("a: [", "while parsing"),
    ],
)
def test_yaml_that_is_refused(text: str, seen: str) -> None:
    with pytest.raises(yaml.YAMLError, match=seen):
        _load(text)


def test_yaml_that_people_write() -> None:
    text = "base: &base {lr: 1e-3, layers: [1, 2]}\nother:\n  <<: *base\n  lr: 2.0\n"
    assert _load(text) == {"base": {"lr": 1e-3, "layers": [1, 2]}, "other": {"lr": 2.0, "layers": [1, 2]}}
    assert len(_load(grown(4))) == 4
    assert get_loader("json")("[1]") == [1]


def test_a_checkpoint_as_torch_writes_it_is_not_taken_for_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, path)
    assert CheckpointIO().load_checkpoint(path)["state_dict"]["x"].shape == (1000,)
    with zipfile.ZipFile(path) as archive:
        assert sum(info.file_size for info in archive.infolist()) < path.stat().st_size


@pytest.mark.parametrize("given", [None, [1], "x", {"_class_path": 3}])
def test_settings_of_a_checkpoint_that_are_none(given: object) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint x\.ckpt: seen no module class"):
        stored_model({"hyper_parameters": given}, "x.ckpt")
    odd = {"_class_path": "ts_lightning.training.SFT", "vlm": "x"}
    with pytest.raises(ValueError, match=r"^checkpoint x\.ckpt: vlm: seen str, expected class_path and init_args"):
        stored_model({"hyper_parameters": odd, "state_dict": {}}, "x.ckpt")
    with pytest.raises(ValueError, match=r"^checkpoint x\.ckpt: state_dict: seen NoneType, expected tensors"):
        stored_model({"hyper_parameters": odd}, "x.ckpt")


def test_descriptions_that_are_too_deep(tmp_path: Path) -> None:
    for name, read in (("twin_config", read_config), ("base", read_adapter), ("ts_lightning", folder_model)):
        (tmp_path / f"{name}.json").write_text("[" * 100_000)
        with pytest.raises(ValueError, match=f"{name}.json: seen .*recursion"):
            read(tmp_path)
        (tmp_path / f"{name}.json").unlink()


def test_a_reward_is_a_function_of_an_allowed_module() -> None:
    with pytest.raises(ValueError, match=r"^rewards\.x: seen '.*import_module', expected one of"):
        load_rewards({"x": "ts_lightning.rl.rewards.import_module"}, {})


def test_text_in_a_report_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    figures = {evil: 0.5, "warning": evil, "by_task": {evil: {evil: 0.5}}}
    one = {"protocol": evil, "questions": 1, "main": evil, "score": 0.5, "interval": None, "paper": {evil: [(1, evil)]}}
    one |= {
        "figures": figures,
        "convention": {evil: evil},
        "subtasks": {evil: {evil: 1}},
        "not_scored": 0,
        "reading": evil,
        "suite": evil,
    }
    scores = {evil: one}
    page = write_suite_report(scores, [], tmp_path, title=evil).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
