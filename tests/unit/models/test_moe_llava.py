"""MoE-LLaVA's public layout and its gate, against an oracle written out in float64."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.models.test_backbones import SAMPLES, batch_of
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.moe_layout import moe_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 56, "patch_size": 14}  # fmt: skip
PUBLIC: dict[str, Any] = {
    "model_type": "moe_llava_phi", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 4, "num_attention_heads": 4, "partial_rotary_factor": 0.5, "mm_vision_select_layer": -2,
    "vision_config": VISION, "moe": moe_config([0, 2], 4, top_k=2),
}  # fmt: skip


def gate_oracle(x_TH: Tensor, weight_EH: Tensor, experts: Any, capacity_factor: float) -> tuple[Tensor, int]:
    """The original's layer, one token after the other, noise off; and how many choices it dropped.

    An expert takes ceil(T / E * 2 * factor) choices: all first choices in the order of the tokens, then the second
    ones. Weights are the clean softmax over what was kept.
    """
    num_tokens, num_experts = len(x_TH), len(weight_EH)
    capacity = math.ceil(num_tokens / num_experts * 2 * capacity_factor)
    gates = [torch.softmax((weight_EH.float() @ x_H.float()), 0, dtype=torch.float32).double() for x_H in x_TH]
    ranked = [sorted(range(num_experts), key=lambda e, g=g: -float(g[e])) for g in gates]
    taken, kept = [0] * num_experts, [[] for _ in gates]
    for choice in (0, 1):
        for t in range(num_tokens):
            expert = ranked[t][choice]
            if taken[expert] < capacity:
                kept[t].append(expert)
            taken[expert] += 1
    out = torch.zeros_like(x_TH, dtype=torch.float64)
    for t, x_H in enumerate(x_TH):
        total = sum(gates[t][e] for e in kept[t])
        for e in kept[t]:
            mlp = experts[e]
            hidden = torch.nn.functional.gelu(
                x_H.double() @ mlp.fc1.weight.double().T + mlp.fc1.bias.double(), approximate="tanh"
            )
            out[t] += gates[t][e] / total * (hidden @ mlp.fc2.weight.double().T + mlp.fc2.bias.double())
    return out, 2 * num_tokens - sum(map(len, kept))


@pytest.mark.parametrize("crowded", [False, True])
def test_the_layer_is_the_originals_without_noise(crowded: bool) -> None:
    backbone = MoELlavaBackbone(config=PUBLIC, seed=1)
    layer = backbone.layers[2].mlp
    torch.manual_seed(0)
    for expert in layer.experts:
        for p in expert.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    x_TH = torch.randn(50, 32)
    if crowded:  # every token's first choice is expert 2
        layer.router.weight.data[2] = 2 * torch.ones(32)
        x_TH = x_TH.abs()
    with torch.no_grad():
        seen = layer(x_TH[None])[0].double()
        expected, dropped = gate_oracle(x_TH, layer.router.weight, layer.experts, capacity_factor=2.0)
        _, dropped_in_training = gate_oracle(x_TH, layer.router.weight, layer.experts, capacity_factor=1.5)
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=1e-5)
    assert dropped == 0
    assert (dropped_in_training > 0) == crowded  # in training the original loses tokens here, ours does not


def test_keys_are_the_public_ones(tmp_path: Path) -> None:
    backbone = MoELlavaBackbone(config=PUBLIC)
    backbone.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for key in (
        "model.embed_tokens.weight",
        "model.final_layernorm.bias",
        "lm_head.weight",
        "model.layers.1.mlp.fc1.weight",
        "model.layers.0.mlp.deepspeed_moe.gate.wg.weight",
        "model.layers.2.mlp.deepspeed_moe.experts.deepspeed_experts.3.fc2.bias",
        "model.layers.3.self_attn.dense.weight",
        "model.mm_projector.image_spatial_proj.0.weight",
        "model.mm_projector.image_spatial_proj.2.bias",
        "model.image_tower.image_tower.vision_model.embeddings.class_embedding",
    ):
        assert key in state, key
    assert "lm_head.bias" not in state
    assert not any(re.search("language_model|multi_modal|router", key) for key in state)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["moe"]["num_experts"] == [4, 4]
    again = MoELlavaBackbone(str(tmp_path))
    assert again.identity()["sha256"] == backbone.identity()["sha256"]
    with torch.no_grad():
        a, b = (PlainVLM(one, train=["*"]).eval() for one in (backbone, again))
        torch.testing.assert_close(
            a(batch_of(a, SAMPLES))["logits"], b(batch_of(b, SAMPLES))["logits"], rtol=1e-6, atol=1e-6
        )


def test_a_tower_of_its_own_folder_and_a_dropped_bias(tmp_path: Path) -> None:
    MoELlavaBackbone(config=PUBLIC, seed=3).save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    tower = {k.removeprefix("model.image_tower.image_tower."): v for k, v in state.items() if "image_tower" in k}
    (tmp_path / "clip").mkdir()
    save_file(tower, tmp_path / "clip/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "clip/config.json").write_text(json.dumps({"vision_config": VISION}))
    rest = {k: v for k, v in state.items() if "image_tower" not in k}
    rest["lm_head.bias"] = torch.ones(2048)
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="give image_tower"):
        MoELlavaBackbone(str(tmp_path))
    again = MoELlavaBackbone(str(tmp_path), image_tower=str(tmp_path / "clip"))
    sha256 = MoELlavaBackbone(config=PUBLIC, seed=3).identity()["sha256"]
    assert again.identity()["sha256"] == sha256
    (tmp_path / "clip/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"image_tower: seen no \*\.safetensors and no pytorch_model\*\.bin in"):
        MoELlavaBackbone(str(tmp_path), image_tower=str(tmp_path / "clip"))
    whole = tower | {"text_model.embeddings.position_ids": torch.ones(1, 77)}  # as CLIP is published
    torch.save(whole, tmp_path / "clip/pytorch_model.bin")
    again = MoELlavaBackbone(str(tmp_path), image_tower=str(tmp_path / "clip"))
    assert again.identity()["sha256"] == sha256


def test_upcycling_a_dense_model(tmp_path: Path) -> None:
    dense = {k: v for k, v in PUBLIC.items() if k != "moe"} | {"model_type": "llava_phi"}
    MoELlavaBackbone(config=dense, seed=2).save(tmp_path)
    base, moe = MoELlavaBackbone(str(tmp_path)), MoELlavaBackbone(str(tmp_path), num_experts=4)
    assert len(moe.layers[2].mlp.experts) == 4
    with torch.no_grad():  # four equal experts, weights that sum to 1: the dense model
        a, b = (PlainVLM(one, train=["*"]).eval() for one in (base, moe))
        torch.testing.assert_close(a(batch_of(a, SAMPLES))["logits"], b(batch_of(b, SAMPLES))["logits"])
    tuned = PlainVLM(moe, train=["*language_model*mlp*fc1*", "*language_model*mlp*fc2*", "*router*"])
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert all(re.search(r"language_model\..*(mlp.*(fc1|fc2)|router)", name) for name in names)
    assert not any("vision_tower" in name for name in names)
    dense, routed = 2 * 4, 2 * (4 * 4 + 1)  # two layers of each kind: two weights and two biases an MLP, and a router
    assert len(names) == dense + routed
    moe.save(tmp_path / "moe")
    assert MoELlavaBackbone(str(tmp_path / "moe")).public["moe"]["moe_layers_idx"] == [0, 2]


def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path: Path) -> None:
    MoELlavaBackbone(config=PUBLIC).save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    cases = {
        "seen no lm_head.weight": {k: v for k, v in state.items() if k != "lm_head.weight"},
        "seen unknown model.layers.9": state | {"model.layers.9.x": torch.ones(1)},
        "seen shape": state | {"model.final_layernorm.bias": torch.ones(7)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=re.escape(message).replace("model", "model.*")) as caught:
            MoELlavaBackbone(str(tmp_path))
        assert "\n" not in str(caught.value)
