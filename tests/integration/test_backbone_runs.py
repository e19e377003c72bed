"""Backbones through the command: fit on a saved folder, validate, predict; bf16 over a base in bf16."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import tiny
from tests.unit.models import test_backbones
from ts_lightning.cli import main
from ts_lightning.models.backbones.base import Backbone


def fit(root: Path, shards: str, name: str, arguments: dict[str, Any], **trainer: Any) -> Path:
    """The checkpoint of two steps on a saved base of random weights."""
    backbone: Backbone = test_backbones.MAKERS[name]()
    backbone.save(root / "base")
    kind = f"{type(backbone).__module__}.{type(backbone).__name__}"
    base = {"class_path": kind, "init_args": {"pretrained": str(root / "base"), **arguments}}
    vlm = {
        "class_path": "ts_lightning.models.TwinExpertVLM",
        "init_args": {"backbone": base, "activation_checkpointing": True},
    }
    config = tiny.config(shards, root, vlm)
    saver = {"save_last": True, "every_n_train_steps": 2}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
    config["trainer"] |= {"max_steps": 2, "callbacks": [callback], **trainer}
    assert main(["fit", "-c", tiny.save(config, root / "fit.json")]) == 0
    return next(root.rglob("last.ckpt"))


@pytest.mark.parametrize("name", ["moe_llava", "qwen2_5_vl"])
def test_fit_and_predict(name: str, shards: str, tmp_path: Path) -> None:
    checkpoint = fit(tmp_path, shards, name, {})
    assert main(["predict", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == len(tiny.MIXED)


def test_bf16_over_a_base_in_bf16(shards: str, tmp_path: Path) -> None:
    arguments = {"dtype": "bfloat16", "codec": "chatspot"}
    checkpoint = fit(tmp_path, shards, "llava_linear", arguments, precision="bf16-mixed")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    experts = {key: tensor for key, tensor in state.items() if "experts" in key}
    assert experts
    assert all(tensor.dtype == torch.float32 for tensor in experts.values())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in experts.values())  # finer than bf16
    assert main(["validate", "--ckpt_path", str(checkpoint)]) == 0
