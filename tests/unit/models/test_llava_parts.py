"""A LLaVA out of a LLaMA and a CLIP: the parts are theirs, the projector is new.

Bitwise: weights that are copied.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from tests.unit.models.test_backbones import batch_of, sample
from tests.unit.models.test_public_folders import sentence_piece
from ts_lightning.cli import main
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.llava import LlavaBackbone

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    tokenizer = sentence_piece(tmp_path / "llama", marks=())
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(tmp_path / "llama")
    vision = {**SIZES, "hidden_size": 24, "image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config={**SIZES, "vocab_size": 50}, vision_config=vision)).save_pretrained(
        tmp_path / "clip"
    )
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, projector: str = "linear", vision: str = "clip") -> int:
    arguments = ["--language", str(folder / "llama"), "--vision", str(folder / vision), "--dtype", "float32"]
    arguments += ["--projector", projector, "--out", str(folder / projector)]
    return main(["assemble", *arguments])


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_the_parts_are_theirs(projector: str, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, parts, projector) == 0
    backbone = LlavaBackbone(str(parts / projector))
    language = LlamaForCausalLM.from_pretrained(parts / "llama").state_dict()
    vision = CLIPModel.from_pretrained(parts / "clip").vision_model.state_dict()
    state = backbone.model.state_dict()
    for name, tensor in language.items():
        seen = state[name.replace("model.", "model.language_model.")]
        assert torch.equal(seen[: len(tensor)], tensor), name
    for name, tensor in vision.items():
        assert torch.equal(state[f"model.vision_tower.{name}"], tensor), name
    first = len(language["lm_head.weight"])  # <image> is the first token that was added
    assert backbone.image_token_id == first
    torch.testing.assert_close(state["lm_head.weight"][first], language["lm_head.weight"].mean(0))
    linear = hasattr(backbone.model.model.multi_modal_projector, "linear")
    assert linear == (projector == "linear")
    vlm = PlainVLM(backbone, train=["*multi_modal_projector*"]).train()
    out = vlm(batch_of(vlm, [sample("understanding")]))
    torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
    assert all(p.grad.any() for p in vlm.parameters() if p.requires_grad)


def test_wrong_folders_are_said_in_one_line(
    parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, parts, vision="llama") == 2
    assert "seen model_type 'llama', expected 'clip' or 'clip_vision_model'" in capsys.readouterr().err
    assert run(monkeypatch, parts, vision="absent") == 2
    assert "seen no config.json" in capsys.readouterr().err
    assert run(monkeypatch, parts) == 0
    assert run(monkeypatch, parts) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert json.loads((parts / "linear/config.json").read_text())["projector"] == "linear"
