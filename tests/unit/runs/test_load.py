"""A folder stands for what it holds; a base that is gone is told in a line."""

import json
import os
from pathlib import Path

import pytest
import torch

from ts_lightning.runs.class_paths import instantiate
from ts_lightning.runs.load import folder_model, found_device, run_checkpoint
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


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, found in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert found_device("auto") == torch.device(found)
    assert [found_device(name).type for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda"]
    with pytest.raises(ValueError, match=r"^device: seen 'cuda:2' where torch sees 2 GPUs, expected one of these"):
        found_device("cuda:2")
    with pytest.raises(ValueError, match=r"^device: seen 'gpu', expected auto, cpu, cuda or cuda:N$"):
        found_device("gpu")


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float32"}, None),
        ({}, None),
    ],
)
def test_a_plain_model_keeps_its_16_bits_on_a_gpu(config: dict, dtype: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = [folder_model(tmp_path, gpu)["init_args"]["vlm"]["init_args"]["backbone"] for gpu in (False, True)]
    assert [backbone["init_args"].get("dtype") for backbone in made] == [None, dtype]


def test_a_stopped_run_is_what_its_signal_saved_until_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    every = [tmp_path / "checkpoints" / name for name in ("last.ckpt", "stopped.ckpt", "step=9.ckpt")]
    for newest in every:
        for path in every:
            path.touch()
            os.utime(path, (1, 2 if path == newest else 1))
        assert run_checkpoint(tmp_path) == newest
