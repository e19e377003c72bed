"""A folder stands for what it holds; a base that is gone is told in a line."""

import os
from pathlib import Path

import pytest

from ts_lightning.runs.class_paths import instantiate
from ts_lightning.runs.load import run_checkpoint
from ts_lightning.training.base import BaseModule


def test_a_runs_folder_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    assert run_checkpoint(tmp_path) == tmp_path
    last = tmp_path / "checkpoints/last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert run_checkpoint(tmp_path) == run_checkpoint(str(tmp_path)) == run_checkpoint(last) == last


def test_a_base_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    base = {
        "class_path": "ts_lightning.models.backbones.hf.HFBackbone",
        "init_args": {"pretrained": str(tmp_path / "gone")},
    }
    vlm = {"class_path": "ts_lightning.models.PlainVLM", "init_args": {"backbone": base, "train": []}}
    with pytest.raises(ValueError, match=r"^pretrained: seen no config\.json") as caught:
        instantiate(BaseModule, "ts_lightning.training.SFT", {"vlm": vlm})
    assert "\n" not in str(caught.value)
    assert "Namespace" not in str(caught.value)


def test_a_stopped_run_is_what_its_signal_saved_until_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    every = [tmp_path / "checkpoints" / name for name in ("last.ckpt", "stopped.ckpt", "step=9.ckpt")]
    for newest in every:
        for path in every:
            path.touch()
            os.utime(path, (1, 2 if path == newest else 1))
        assert run_checkpoint(tmp_path) == newest
