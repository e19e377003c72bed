"""The plan of a card's memory: counts against built models, and the three models that a 24 GB card has to hold."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tools.bench.geometry import CLIP_L, LLAVA_7B, MOE_LLAVA_PHI2, QWEN2_VL_7B
from ts_lightning.cli import main
from ts_lightning.data import ShardDataModule
from ts_lightning.models import LoRAVLM, TwinExpertVLM
from ts_lightning.models.backbones.hub_layout import random_model
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_layout import moe_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.reports.memory_plan import (
    Form,
    Geometry,
    GiB,
    Load,
    activations,
    forms,
    largest_micro_batch,
    largest_twist,
    plan,
    tower_bytes,
)

TEXT = {"vocab_size": 1500, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
        "num_attention_heads": 4}  # fmt: skip
TOWER = CLIP_L | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "llava", "vision_config": TOWER | {"model_type": "clip_vision_model"},
              "text_config": TEXT | {"model_type": "llama"}},
    "moe": TEXT | {"model_type": "moe_llava_phi", "partial_rotary_factor": 0.5, "vision_config": TOWER,
                   "moe": moe_config([0, 2], 4, top_k=2)},
}  # fmt: skip
FULL: dict[str, dict[str, Any]] = {  # the sizes that their makers published
    "Qwen2.5-VL-7B": {"model_type": "qwen2_5_vl", "text_config": QWEN2_VL_7B["text_config"],
                      "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                                        "out_hidden_size": 3584}},
    "Qwen3-VL-8B": {"model_type": "qwen3_vl",
                    "text_config": {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
                                    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                                    "head_dim": 128},
                    "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
                                      "out_hidden_size": 4096}},
    "LLaVA-1.5-7B": LLAVA_7B,
}  # fmt: skip


def geometry(folder: Path, config: dict[str, Any]) -> Geometry:
    (folder / "config.json").write_text(json.dumps(config))
    return Geometry.of(folder)


@pytest.mark.parametrize("name", list(SMALL))
def test_counts_are_those_of_built_models(name: str, tmp_path: Path) -> None:
    """Weights and what trains, to the byte: a base in bf16, trained weights in fp32."""
    config, kind = SMALL[name], {"llava": LlavaBackbone, "moe": MoELlavaBackbone}[name]
    seen = geometry(tmp_path, config)
    with torch.device("meta"):
        for rank in (None, 4):
            twin = TwinExpertVLM(kind(config=config), expert_rank=rank)
            numbers = [p.numel() for p in twin.parameters() if p.requires_grad]
            frozen = sum(p.numel() for p in twin.parameters() if not p.requires_grad)
            made = plan(seen, Form("twist", rank), Load())
            assert (made.trained, made.gradients, made.optimizer) == (
                sum(numbers),
                4 * sum(numbers),
                8 * sum(numbers),
            )
            assert made.weights == 2 * frozen + 4 * sum(numbers)
        targets = sorted({"q_proj", "k_proj", "v_proj"} | ({"o_proj", "gate_proj", "up_proj", "down_proj"}
                         if name == "llava" else {"dense", "fc1", "fc2"}))  # fmt: skip
        lora = LoRAVLM(kind(config=config), 4, targets=targets)
        trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)
        assert plan(seen, Form("lora", 4), Load()).trained == trained


def test_quantised_weights_and_the_cache_by_hand(tmp_path: Path) -> None:
    seen = geometry(tmp_path, SMALL["llava"])
    matrices = 4 * (4 * 64 * 64 + 3 * 64 * 160)  # attention and MLP of four layers
    plain = plan(seen, Form("twist", 4), Load())
    eight, four = (plan(seen, Form("twist", 4, kind), Load()) for kind in ("int8", "nf4"))
    assert plain.weights - eight.weights == matrices
    assert plain.weights - four.weights == matrices * (1.5 - 2 / 64)
    # 3 rows of 10 + 24 * 24 tokens and 5 new ones in bf16: keys and values of 4 layers; of the prompts, whatever a
    # micro-batch is, three hidden states, gate, up and their product
    made = plan(seen, Form("lora", 4), Load(2, eval_batch=3, text=10, answer=5))
    assert made.evaluation == 3 * 2 * ((10 + 576 + 5) * 2 * 4 * 64 + (10 + 576) * (3 * 64 + 3 * 160))


def test_a_tower_that_trains_keeps_the_inputs_of_its_blocks(tmp_path: Path) -> None:
    seen, text = geometry(tmp_path, SMALL["llava"]), Load(3, text=10, pictures=0)
    pictures = Load(3, text=10, pictures=2, picture_tokens=576)
    patches = 3 * 2 * 24 * 24  # 336 / 14 a side
    assert tower_bytes(seen, text) == (0, 0)
    kept, block = tower_bytes(seen, pictures)
    assert kept == 2 * 32 * patches * 2  # two layers in bf16
    # q, k, v, out and two matrices of the MLP with what they read; two norms; the widest twice on the way back
    assert block == patches * (2 * (4 * (32 + 32) + 2 * (32 + 64)) + 32 * (2 + 8) + 2 * 64 * 2)
    words = replace(pictures, text=10 + 2 * 576, pictures=0)  # as many tokens
    for form, more in ((Form("full"), kept), (Form("lora", 4), 0), (Form("twist"), 0)):
        assert activations(seen, form, pictures) == activations(seen, form, words) + more


@pytest.mark.parametrize(("name", "patches"), [("Qwen2.5-VL-7B", 4), ("Qwen3-VL-8B", 4), ("LLaVA-1.5-7B", 1)])
def test_patches_of_a_token_are_those_of_the_tower(name: str, patches: int, tmp_path: Path) -> None:
    assert geometry(tmp_path, FULL[name]).patches == patches


def test_an_evaluation_has_as_many_rows_as_a_fit_gives_it(tmp_path: Path) -> None:
    seen, form = geometry(tmp_path, FULL["LLaVA-1.5-7B"]), Form("twist", 64)
    assert Load().eval_batch == inspect.signature(ShardDataModule).parameters["eval_batch_size"].default
    four, default = (plan(seen, form, load) for load in (Load(eval_batch=4), Load()))
    assert default.evaluation == 4 * four.evaluation
    assert four.peak < 23 * GiB < default.peak == default.weights + default.optimizer + default.evaluation


@pytest.mark.parametrize("name", list(FULL))
def test_a_card_of_24_gb_holds_low_rank_experts_over_an_nf4_base(name: str, tmp_path: Path) -> None:
    seen = geometry(tmp_path, FULL[name])
    load = Load(eval_batch=4, picture_tokens=seen.picture_tokens())
    made = plan(seen, Form("twist", 64, "nf4"), load)
    assert made.peak <= 22 * GiB
    assert made.package <= 400e6
    assert plan(seen, Form("twist", 64), load).peak <= 22 * GiB  # not even the quantisation is needed
    assert plan(seen, Form("twist"), load).peak > 80 * GiB
    best = largest_twist(seen, load, 23 * GiB)
    assert best is not None
    assert best.form.quantization is None


ONE_SIZE: dict[str, tuple[dict[str, Any], int, int]] = {  # as published; tiles and tokens of a picture of 1024 x 1024
    "gemma3": ({"mm_tokens_per_image": 256, "vision_config": {"image_size": 896, "patch_size": 14}}, 1, 256),
    # 448 / 14 / 2 = 16 a side; 3 x 3 tiles (at most 12), and the whole
    "internvl": ({"downsample_ratio": 0.5, "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}},
                 10, 10 * 16**2),
    # 512 / 16 / 4 = 8 and 364 / 14 / 2 = 13 a side; every picture is enlarged to 4 x 4 tiles
    "smolvlm": ({"scale_factor": 4, "vision_config": {"image_size": 512, "patch_size": 16}}, 17, 17 * 8**2),
    "idefics3": ({"scale_factor": 2, "vision_config": {"image_size": 364, "patch_size": 14}}, 17, 17 * 13**2),
    # 336 / 14 = 24 a side; 2 x 2 tiles with a token behind each of their 48 rows
    "llava_next": ({"image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
                    "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}},
                   5, 24**2 + 48 * 49),
    # 384 / 14 = 27 a side; 3 x 3 tiles, 81 rows
    "llava_onevision": ({"image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
                         "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}},
                        10, 27**2 + 81 * 82),
    "ovis2": ({"vision_config": {"image_size": 448, "patch_size": 14, "hidden_stride": 2}}, 1, 16**2),
    "llava": ({"vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}}, 1, 24**2),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ONE_SIZE))
def test_tokens_of_a_picture_are_those_that_the_decoder_gets(name: str) -> None:
    config, tiles, tokens = ONE_SIZE[name]
    with torch.device("meta"):
        seen = Geometry(random_model(small(name, config), "float32"), name)
    assert (seen.tiles(), seen.picture_tokens(), seen.any_size) == (tiles, tokens, False)


def test_tokens_of_a_photograph_are_bounded_as_in_training(tmp_path: Path) -> None:
    seen = geometry(tmp_path, FULL["Qwen2.5-VL-7B"])
    assert seen.any_size
    assert [seen.picture_tokens(side) for side in (560, 1024, 4032)] == [20**2, 36**2, 4096]


def small(name: str, config: dict[str, Any]) -> Any:
    """The config of a family with a decoder and a tower of one small layer."""
    layer = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    own = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99, "layer_types": None, "pad_token_id": 0}
    text = AutoConfig.for_model(name).get_text_config().to_dict() | layer | own
    parts = {"text_config": text, "vision_config": config["vision_config"] | layer}
    return AutoConfig.for_model(name, **config | parts)


def test_low_rank_is_planned_where_a_vlm_can_have_it(tmp_path: Path) -> None:
    """Up to the smaller side of one expert's matrix; not at all where experts are packed."""
    moe = geometry(tmp_path, SMALL["moe"] | {"intermediate_size": 40})  # 2 of 4 experts a token
    assert moe.largest_rank(1) == 40
    assert largest_twist(moe, Load(), 1.0, ranks=(48, 8)) is None
    packed = AutoConfig.for_model("glm4v_moe").get_text_config().to_dict() | {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    seen = geometry(tmp_path, {"model_type": "glm4v_moe", "text_config": packed, "vision_config": vision})
    assert seen.largest_rank(1) == 0
    assert not any("rank" in form.name for form in forms(seen, 4, 8, 1) if form.method == "twist")


def test_the_largest_setting_is_the_last_that_fits(tmp_path: Path) -> None:
    seen, form = geometry(tmp_path, SMALL["moe"]), Form("twist", 8)
    room = plan(seen, form, Load(micro_batch=4, eval_batch=1)).peak
    assert largest_micro_batch(seen, form, Load(eval_batch=1), room) == 4
    assert largest_micro_batch(seen, form, Load(), 1.0) == 0
    assert largest_twist(seen, Load(), 1.0) is None
    whole = largest_twist(seen, Load(), GiB)
    assert whole is not None
    assert whole.form == Form("twist")


def test_the_verb_prints_every_form_and_says_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE_LLAVA_PHI2))
    assert main(["plan", "--vlm", str(tmp_path), "--gpu", "16", "--rank", "32", "--eval_batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "5.61 B parameters, 32 decoder layers; 1 x 1088 tokens, 576 of a picture; evaluation: 2 rows;" in said
    assert sum(line.startswith(("TWIST", "LoRA", "full")) for line in said.splitlines()) == 8
    assert said.splitlines()[-1].startswith("largest TWIST that fits: expert_rank: 256, quantization: null (")
    (tmp_path / "config.json").write_text(json.dumps(FULL["Qwen2.5-VL-7B"]))
    assert main(["plan", "--vlm", str(tmp_path), "--gpu", "2"]) == 1
    assert "1808 tokens, 1296 of a picture of 1024 x 1024; evaluation" in capsys.readouterr().out
    assert main(["plan", "--vlm", str(tmp_path / "no")]) == 2
    assert "seen no config.json" in capsys.readouterr().err
