"""Exported folders in the hands of plain transformers and peft, opened from another place."""

import os
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.unit.models.hf_families import make_folder
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.runs.export import export
from ts_lightning.runs.load import load
from ts_lightning.training import SFT, LoRASFT, StepwiseSFT


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a base, as it was given in the folder that is left afterwards."""
    make_folder("llava", tmp_path / "here/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return "base"


def readable(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o044 == 0o044 for path in folder.rglob("*") if path.is_file())


@torch.no_grad()
def test_an_adapter_finds_its_base(base: str, tmp_path: Path) -> None:
    vlm = LoRAVLM(HFBackbone(base), rank=2).eval()
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    export(LoRASFT(vlm), "adapter", tmp_path / "adapter")
    os.chdir(tmp_path / "elsewhere")
    ids = torch.arange(5, 25)[None]
    expected = vlm.backbone.model(input_ids=ids).logits
    for kind in (AutoModelForImageTextToText, AutoPeftModel):
        theirs = kind.from_pretrained(tmp_path / "adapter").eval()
        if kind is AutoModelForImageTextToText:
            torch.testing.assert_close(theirs(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-6)
    assert readable(tmp_path / "adapter")


@pytest.mark.parametrize("kind", [HFBackbone, LlavaBackbone])
def test_a_merged_model_brings_its_processor(kind: type, base: str, tmp_path: Path) -> None:
    export(LoRASFT(LoRAVLM(kind(base), rank=2)), "standalone", tmp_path / "whole")
    assert type(AutoProcessor.from_pretrained(tmp_path / "whole")).__name__ == "LlavaProcessor"
    assert readable(tmp_path / "whole")


def test_twin_experts_say_what_they_are(base: str, tmp_path: Path) -> None:
    export(StepwiseSFT(TwinExpertVLM(HFBackbone(base), every=1)), "standalone", tmp_path / "whole")
    for folder in (tmp_path / "whole", tmp_path / "whole/package"):
        with pytest.raises(ValueError, match=r"twin experts of ts_lightning, opened by ts_lightning.load\(FOLDER\)"):
            AutoModelForImageTextToText.from_pretrained(folder)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "whole/base")).__name__.startswith("Llava")
    assert isinstance(load(tmp_path / "whole").vlm, TwinExpertVLM)
    assert readable(tmp_path / "whole")


def test_a_standalone_model_has_all_packages(base: str, tmp_path: Path) -> None:
    TwinExpertVLM(HFBackbone(base), every=1, alpha_init=0.25).save_pretrained(tmp_path / "other")
    vlm = TwinExpertVLM(HFBackbone(base), package="reading", packages={"grounding": str(tmp_path / "other")})
    export(StepwiseSFT(vlm), "standalone", tmp_path / "whole")
    again = load(tmp_path / "whole").vlm
    assert (again.package, again.options) == ("reading", vlm.options)
    assert again.package_tensors("grounding")["alpha"].item() == 0.25
    assert [name for name, p in again.package_tensors("grounding").items() if p.requires_grad] == []


def test_a_linear_projector_is_refused_by_plain_transformers(base: str, tmp_path: Path) -> None:
    """It would open with a random projector of its own."""
    vlm = PlainVLM(LlavaBackbone(base, projector="linear"))
    export(SFT(vlm), "standalone", tmp_path / "whole")
    with pytest.raises(KeyError, match=r"linear projector of ts_lightning, opened by ts_lightning.load\(FOLDER\)"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    again = load(tmp_path / "whole").vlm.backbone
    assert again.identity()["sha256"] == vlm.backbone.identity()["sha256"]
    LlavaBackbone(str(tmp_path / "whole"), projector="mlp")  # LLaVA's own again, fresh
