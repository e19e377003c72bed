"""The LoRA baseline: what trains, peft's own layout, equal parameters with TWIST."""

import json
import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_backbones import MAKERS
from tools.bench.geometry import MOE_LLAVA_PHI2
from ts_lightning.cli.configurations import read_configuration
from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.lora import read_adapter
from ts_lightning.models.moe import MoE
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples
from ts_lightning.runs.class_paths import instantiate, plain

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "vision_layers": 1, "num_heads": 2}
SAMPLES = [*grounding_samples("train", 3, ("localization", "rec")), *understanding_samples("train", 3)]
CONFIGS = Path(__file__).parents[3] / "configs/fit"


class DenseTiny(TinyBackbone):
    """The tiny backbone with plain MLPs: a plain `LlavaForConditionalGeneration`."""

    def __init__(self) -> None:
        super().__init__(pretrained=None, **SIZES)
        for layer in self.layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp = layer.mlp.experts[0]


def backbone() -> TinyBackbone:
    return TinyBackbone(pretrained=None, **SIZES)


def shaken(vlm: LoRAVLM) -> LoRAVLM:
    torch.manual_seed(1)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vlm.eval()


def batch(vlm: PlainVLM | LoRAVLM) -> dict:
    return collate([vlm.encode(sample) for sample in SAMPLES], vlm.pad_id)


@torch.no_grad()
def test_dora_trains_lengths_and_starts_as_the_base() -> None:
    vlm, base = LoRAVLM(backbone(), rank=4, dora=True).eval(), PlainVLM(backbone(), train=()).eval()
    rows = batch(vlm)
    torch.testing.assert_close(vlm(rows)["logits"], base(rows)["logits"], atol=1e-5, rtol=1e-5)
    lengths = {n: p for n, p in vlm.named_parameters() if "lora_magnitude_vector" in n and p.requires_grad}
    assert lengths
    for parameter in lengths.values():
        parameter.mul_(2.0)  # a matrix of twice the length
    assert not torch.allclose(vlm(rows)["logits"], base(rows)["logits"], atol=1e-3)


@torch.no_grad()
def test_starts_as_the_base_and_is_it_without_the_adapter() -> None:
    vlm, base = LoRAVLM(backbone(), rank=4, train_token_rows=["codec"]).eval(), PlainVLM(backbone(), train=()).eval()
    rows = batch(vlm)
    expected = base(rows)["logits"]
    torch.testing.assert_close(vlm(rows)["logits"], expected, atol=1e-6, rtol=1e-6)
    shaken(vlm)
    assert not torch.allclose(vlm(rows)["logits"], expected, atol=1e-3)
    with vlm.without_adapter():
        torch.testing.assert_close(vlm(rows)["logits"], expected, atol=1e-6, rtol=1e-6)


def test_adapters_train_and_nothing_else() -> None:
    vlm = LoRAVLM(backbone(), rank=3, dropout=0.1, targets=["fc1", "fc2"]).train()
    trains = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
    # layers 0 and 2 have 4 experts, 1 and 3 one MLP: 10 MLPs of 32 -> 48 -> 32, two matrices each
    assert sum(p.numel() for p in trains.values()) == 10 * 2 * 3 * (32 + 48)
    assert all("lora_" in name and "vision" not in name for name in trains)
    torch.manual_seed(0)
    vlm(batch(vlm))["logits"].sum().backward()
    assert all(p.grad is not None for p in trains.values())
    assert all(p.grad is None for name, p in vlm.named_parameters() if name not in trains)
    drops = {module.training for name, module in vlm.named_modules() if name.endswith("lora_dropout.default")}
    assert drops == {True}


@torch.no_grad()
@pytest.mark.parametrize("rows", [[], ["codec"]], ids=["", "token rows"])
def test_plain_peft_loads_it_onto_the_plain_model(rows: list[str], tmp_path: Path) -> None:
    vlm = shaken(LoRAVLM(DenseTiny(), rank=4, targets=["fc1", "fc2", "q_proj"], train_token_rows=rows))
    vlm.save_pretrained(tmp_path / "adapter", {"val/grounding/miou": 0.25})
    DenseTiny().model.save_pretrained(tmp_path / "base")
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    inputs = batch(vlm)
    images = {"pixel_values": torch.zeros(len(SAMPLES), 3, 96, 96)}
    ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["valid"].long()}
    ours = vlm.backbone.model(**ids, **images).logits
    torch.testing.assert_close(theirs(**ids, **images).logits, ours, rtol=1e-6, atol=1e-6)
    assert "val/grounding/miou: 0.2500" in (tmp_path / "adapter/README.md").read_text()
    merged = theirs.merge_and_unload()
    assert type(merged) is LlavaForConditionalGeneration
    torch.testing.assert_close(merged(**ids, **images).logits, ours, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_save_and_load_give_the_same_logits(tmp_path: Path) -> None:
    vlm = shaken(LoRAVLM(backbone(), rank=4, train_token_rows=["codec"]))
    vlm.save_pretrained(tmp_path)
    rows = batch(vlm)
    again = LoRAVLM.from_pretrained(tmp_path, backbone())
    torch.testing.assert_close(again(rows)["logits"], vlm(rows)["logits"], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="trained on a base of sha256"):
        LoRAVLM.from_pretrained(tmp_path, TinyBackbone(pretrained=None, seed=3, **SIZES))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match=r"adapter .*: adapter_model.safetensors changed since it was saved: seen sha"):
        LoRAVLM.from_pretrained(tmp_path, backbone())
    stored = json.loads((tmp_path / "base.json").read_text())
    del stored["sha256"]  # as adapters of before
    (tmp_path / "base.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"adapter_model.safetensors can't be read"):
        LoRAVLM.from_pretrained(tmp_path, backbone())


def test_an_adapter_that_would_be_scaled_otherwise_is_refused(tmp_path: Path) -> None:
    """4 / 2 = 2 times as trained, 64 / 2 = 32 times as loaded; what is left out is the default, 256."""
    vlm = LoRAVLM(backbone(), rank=2, lora_alpha=4, train_token_rows=["codec"])
    vlm.save_pretrained(tmp_path / "adapter")
    state = {f"vlm.{key}": value for key, value in vlm.trainable_state_dict().items()}
    config = {
        "model": {"init_args": {"vlm": {"init_args": {"rank": 2, "lora_alpha": 4, "train_token_rows": ["codec"]}}}}
    }
    torch.save({"state_dict": state, "base": vlm.identity(), "config": config}, tmp_path / "x.ckpt")
    for start in map(str, (tmp_path / "adapter", tmp_path / "x.ckpt")):
        LoRAVLM(backbone(), rank=2, lora_alpha=4, dropout=0.0, train_token_rows=["codec"], init_from=start)
        for other, seen in (({"lora_alpha": 64}, "expected 64"), ({}, "expected 256")):
            with pytest.raises(ValueError, match=f"lora_alpha: seen weights that were trained with 4, {seen}"):
                LoRAVLM(backbone(), rank=2, **other, train_token_rows=["codec"], init_from=start)
        with pytest.raises(ValueError, match=r"train_token_rows: .* trained with \['codec'\], expected \[' boat'\]"):
            LoRAVLM(backbone(), rank=2, lora_alpha=4, train_token_rows=[" boat"], init_from=start)


class MineLoRA(LoRAVLM):
    """An adapter of somebody's own, which decides for itself."""

    def __init__(self, backbone: TinyBackbone, **kw: Any) -> None:
        super().__init__(backbone, rank=2, lora_alpha=4, **kw)


def test_an_adapter_of_ones_own_starts_from_its_weights(tmp_path: Path, caplog: Any) -> None:
    vlm = shaken(MineLoRA(backbone(), train_token_rows=["codec"]))
    vlm.save_pretrained(tmp_path / "adapter")
    state = {f"vlm.{key}": value for key, value in vlm.trainable_state_dict().items()}
    config = {"model": {"init_args": {"vlm": plain(vlm, "vlm")}}}
    torch.save({"state_dict": state, "base": vlm.identity(), "config": config}, tmp_path / "x.ckpt")
    texts = vlm.encoder.row_tokens(["codec"])
    for start in map(str, (tmp_path / "adapter", tmp_path / "x.ckpt")):
        for rows in (["codec"], texts):
            again = MineLoRA(backbone(), train_token_rows=rows, init_from=start)
            assert all(map(torch.equal, again.trainable_state_dict().values(), vlm.trainable_state_dict().values()))
        assert "init_from" not in caplog.text
        MineLoRA(TinyBackbone(pretrained=None, codec="mirg", **SIZES), train_token_rows=texts, init_from=start)
        assert "trained to write {'frame': 'original', 'grid': '100', 'name': 'scout'}" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match="lora_alpha: seen weights that were trained with 4, expected 256"):
        LoRAVLM(backbone(), rank=2, train_token_rows=["codec"], init_from=str(tmp_path / "adapter"))
    LoRAVLM(backbone(), rank=2).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"lora_alpha: seen weights that were trained with 256.*, expected 4"):
        MineLoRA(backbone(), init_from=str(tmp_path / "plain"))


@torch.no_grad()
def test_rows_of_a_head_of_its_own_train_too(tmp_path: Path) -> None:
    """As in TWIST; a tied head has none of its own."""
    trained = {"embed_tokens", "lm_head"}
    for make, expected in ((backbone, {"embed_tokens"}), (MAKERS["llava"], trained), (MAKERS["qwen2_5_vl"], trained)):
        vlm = LoRAVLM(make(), rank=2, train_token_rows=["0", "1"])
        rows = {n: p for n, p in vlm.named_parameters() if "trainable_tokens_delta" in n and p.requires_grad}
        assert {name.split(".token_adapter")[0].rsplit(".", 1)[-1] for name in rows} == expected
        assert all(len(p) == 2 for p in rows.values())
    base = PlainVLM(MAKERS["qwen2_5_vl"](), train=()).eval()
    inputs = batch(vlm.eval())
    torch.testing.assert_close(vlm(inputs)["logits"], base(inputs)["logits"], rtol=1e-6, atol=1e-6)
    shaken(vlm).save_pretrained(tmp_path)
    again = LoRAVLM.from_pretrained(tmp_path, MAKERS["qwen2_5_vl"]())
    torch.testing.assert_close(again(inputs)["logits"], vlm(inputs)["logits"], rtol=1e-6, atol=1e-6)


def test_all_linear_layers_but_routers_by_default(tmp_path: Path) -> None:
    vlm = LoRAVLM(backbone(), rank=3)
    assert vlm.targets == ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"]
    # beside the MLPs four layers of 32 -> 32 in each of four attentions
    trains = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    assert trains == 10 * 2 * 3 * (32 + 48) + 4 * 4 * 3 * (32 + 32)
    vlm.save_pretrained(tmp_path)
    assert read_adapter(tmp_path)["options"]["targets"] == vlm.targets


def test_names_of_an_mlp_that_peft_takes_for_packed_experts(tmp_path: Path) -> None:
    make_folder("glm4v_moe", tmp_path)
    vlm = LoRAVLM(HFBackbone(str(tmp_path)), rank=2)
    assert vlm.targets == ["k_proj", "o_proj", "q_proj", "v_proj"]
    trained = {n.split(".lora_")[0] for n, p in vlm.named_parameters() if p.requires_grad}
    assert trained
    assert all(re.search(rf"layers\.\d+\.self_attn\.({'|'.join(vlm.targets)})$", name) for name in trained)
    with pytest.raises(ValueError, match="targets: seen 'down_proj' of glm4v_moe, expected all-linear or some of k_pr"):
        LoRAVLM(HFBackbone(str(tmp_path)), targets=["down_proj"])


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match="targets: seen 'gate', expected all-linear, or linear layers of the decoder: dense, fc1"
    ):
        LoRAVLM(backbone(), targets=["gate"])
    with pytest.raises(ValueError, match="rank: seen 0"):
        LoRAVLM(backbone(), rank=0)
    with pytest.raises(ValueError, match="quantization: seen 'int8' with dora, expected null or dora: false"):
        LoRAVLM(backbone(), dora=True, quantization="int8")
    biased = backbone()
    biased.head.bias = torch.nn.Parameter(torch.zeros(len(biased.head.weight)))
    with pytest.raises(ValueError, match="train_token_rows: seen a head with a bias"):
        LoRAVLM(biased, train_token_rows=["codec"])


@pytest.mark.parametrize(
    ("twist", "lora", "base", "device"),
    [
        ("toy_twist", "lora_toy_equal", {"pretrained": "shipped"}, "cpu"),
        ("twist_moe_llava_phi2", "lora_moe_llava_phi2_equal", {"config": MOE_LLAVA_PHI2, "dtype": "bfloat16"}, "meta"),
    ],
)
def test_the_equal_configurations_have_as_many_parameters_as_twist(
    twist: str, lora: str, base: dict[str, Any], device: str
) -> None:
    """To within half of what one more rank would add."""
    counts = []
    for name, kind in ((twist, TwinExpertVLM), (lora, LoRAVLM)):
        spec = read_configuration(str(CONFIGS / f"{name}.yaml"))["model"]["init_args"]["vlm"]
        taken = signature(
            kind
        ).parameters  # an overlay of another class leaves what that does not take, as the parser does
        spec["init_args"] = {key: value for key, value in spec["init_args"].items() if key in taken}
        spec["init_args"]["backbone"]["init_args"] = base
        with torch.device(device):
            vlm = instantiate(kind, **spec)
        counts.append(sum(p.numel() for p in vlm.parameters() if p.requires_grad))
        if kind is LoRAVLM:
            matrices = [m for n, m in vlm.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))]
            rank = spec["init_args"]["rank"]
            one_more = sum(m.weight.numel() for m in matrices) / rank
    assert abs(counts[0] - counts[1]) <= one_more / 2
