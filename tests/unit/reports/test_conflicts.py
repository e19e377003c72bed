"""Packages on one base: sizes, and a matrix that is empty by construction and would see a leak."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ts_lightning.cli import main
from ts_lightning.data.write import write_shards
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.routing import Routing
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "vision_layers": 1,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packages of different forms, one with a token of its own, and shards of both kinds."""
    folder = tmp_path_factory.mktemp("store")
    for number, options in enumerate(({"expert_rank": 4}, {"num_experts": 1}, {"new_tokens": ["<loc>"]})):
        made: dict[str, Any] = dict(options)
        vlm = TwinExpertVLM(TinyBackbone(pretrained=None, **SIZES), every=1, **made)
        torch.manual_seed(number)
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        vlm.save_pretrained(folder / f"skill_{number}")
    write_shards(grounding_samples("val", 3, ("localization",)), folder, "val_grounding", 10)
    write_shards(understanding_samples("val", 2), folder, "val_understanding", 10)
    return folder


def run(store: Path, *more: str) -> int:
    packages = [str(store / f"skill_{number}") for number in range(3)]
    return main(["conflicts", *packages, "--shards", str(store / "val_*.tar"), "--max_new_tokens", "3", *more])


def test_no_package_changes_another_or_the_base(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "--out", str(store / "new/found.json")) == 0
    said = capsys.readouterr().out
    assert "3 questions of a skill, 2 of understanding; logits equal bit by bit everywhere" in said
    found = json.loads((store / "new/found.json").read_text())
    assert found["matrix"].keys() == {"skill_0", "skill_1", "skill_2", "base"}
    assert found["matrix"]["skill_1"].keys() == {"skill_0", "skill_2"}
    assert found["matrix"]["base"].keys() == {"skill_1", "skill_2"}
    assert found["sizes"]["skill_0"] == (store / "skill_0/package.safetensors").stat().st_size
    assert found["sizes"]["skill_0"] < found["sizes"]["skill_1"]


def test_a_leak_between_packages_is_seen(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Routing.positions_of
    monkeypatch.setattr(Routing, "positions_of", lambda self, name: own(self, name) | True)  # token rows of all
    assert run(store) == 1
    assert "*: logits differ" in capsys.readouterr().out


def test_a_linked_folder_is_the_skill_of_the_links_name(store: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("boxes", "signs")):  # runs/boxes/package, as `export` is often told to write
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "package").symlink_to(store / f"skill_{number}")
        (tmp_path / name).symlink_to(tmp_path / "runs" / name / "package")
    words = [str(tmp_path / "boxes"), f"{tmp_path}/signs/", "--shards", str(store / "val_*.tar"), "--max_samples", "1"]
    assert main(["conflicts", *words, "--max_new_tokens", "1", "--out", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["sizes"].keys() == {"boxes", "signs"}


def test_refusals(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ["--shards", str(store / "val_understanding-*.tar")]
    assert main(["conflicts", str(store / "skill_0"), *shards]) == 2
    assert "expected two or more of different names" in capsys.readouterr().err
    assert main(["conflicts", str(store / "skill_0"), str(store / "skill_1"), *shards]) == 2
    assert "seen no question of a skill" in capsys.readouterr().err
    for option in ("max_samples", "batch_size", "max_new_tokens"):
        assert main(["certify", "--ckpt", str(store / "skill_0"), *shards, f"--{option}", "0"]) == 2
        assert f"--{option}: seen 0, expected at least 1" in capsys.readouterr().err
    for words in (["conflicts", str(store / "skill_0")], ["certify", "--ckpt", str(store / "skill_0")]):
        assert main([*words, *shards, "--out", str(store)]) == 2  # before anything is asked
        assert f"--out: seen the folder {store}, expected a file" in capsys.readouterr().err
