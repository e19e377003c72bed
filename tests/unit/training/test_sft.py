"""The loss that a run names: by a YAML's class_path, by an object in Python, and of a class of one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ts_lightning.data.collate import collate
from ts_lightning.losses import RowLoss, Stepwise, TokenMean, answer_nll, token_mean_loss
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.shards import grounding_samples
from ts_lightning.runs.export import write_checkpoint
from ts_lightning.runs.load import load
from ts_lightning.runs.package_state import model_config
from ts_lightning.training import SFT, LoRASFT, StepwiseSFT

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vision_layers": 1, "num_heads": 2}
SAMPLES = list(grounding_samples("train", 2, ("localization", "scout")))


@dataclass(frozen=True)
class Focal(RowLoss):
    """(1 - p)^gamma * -log p, averaged over the tokens of a row."""

    gamma: float = 2.0

    def __call__(self, output: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        nll_BT = answer_nll(output, batch["step_ids"])
        return {"loss": token_mean_loss((1 - (-nll_BT).exp()) ** self.gamma * nll_BT, batch["step_ids"])}


def vlm(**more: Any) -> TwinExpertVLM:
    torch.manual_seed(0)
    return TwinExpertVLM(TinyBackbone(pretrained=None, **SIZES), every=1, **more)


def rows(module: SFT) -> dict[str, Tensor]:
    return module.row_losses(collate([module.vlm.encode(s) for s in SAMPLES], module.vlm.pad_id))


def test_a_checkpoint_names_the_loss(tmp_path: Path) -> None:
    """It is stored for whoever trains on; what is loaded to answer needs none."""
    module = SFT(PlainVLM(TinyBackbone(pretrained=None, **SIZES)), Stepwise("sum", isolated=True), max_new_tokens=7)
    write_checkpoint(module, tmp_path / "x.ckpt")
    stored = model_config(torch.load(tmp_path / "x.ckpt", weights_only=True))["init_args"]
    assert stored["loss"] == {
        "class_path": "ts_lightning.losses.rows.Stepwise",
        "init_args": {"step_loss": "sum", "balance_coeff": None, "isolated": True, "first_choice": False},
    }
    assert load(tmp_path / "x.ckpt").max_new_tokens == 7  # the base's arguments are seen through **kwargs


def test_a_loss_of_ones_own_trains_and_is_stored() -> None:
    module = SFT(vlm(), Focal(gamma=0.0))
    torch.testing.assert_close(rows(module)["loss"], rows(SFT(module.vlm))["loss"])  # (1 - p)^0 = 1: the plain mean
    assert module.hparams["loss"] == {"class_path": f"{__name__}.Focal", "init_args": {"gamma": 0.0}}
    focal = rows(SFT(module.vlm, Focal()))["loss"]
    assert (focal < rows(module)["loss"]).all()
    focal.sum().backward()
    assert all(p.grad is not None for p in module.vlm.parameters() if p.requires_grad)


def test_the_papers_modules_set_theirs() -> None:
    twin = vlm()
    assert SFT(twin).loss == TokenMean()
    assert StepwiseSFT(twin).loss == Stepwise("step_mean", 0.01)
    assert StepwiseSFT(twin, step_loss="isolated").loss == Stepwise("sum", 0.01, isolated=True)  # as stored before
    assert LoRASFT(PlainVLM(twin.backbone), step_loss="sum").loss == Stepwise("sum")
    assert StepwiseSFT(twin, balance_coeff=0.5, max_new_tokens=9).hparams["balance_coeff"] == 0.5
    with pytest.raises(ValueError, match="step_loss: seen 'mean', expected one of sum, step_mean"):
        StepwiseSFT(twin, step_loss="mean")


def test_what_evaluation_is_asked_for_is_checked_at_once() -> None:
    module = SFT(PlainVLM(TinyBackbone(pretrained=None, **SIZES)))
    with pytest.raises(ValueError, match=r"alpha: seen 0\.5 for a PlainVLM"):
        module.answer_as(alpha=0.5)
    module.answer_as("understanding")
    assert module.encoder(SAMPLES[0], True)["task"] == 0
    assert module.encoder(SAMPLES[0])["task"] == 1
