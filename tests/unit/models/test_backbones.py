"""Every backbone on small random weights: the guarantees of the twin, loading and saving, decoding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
)

from tests.unit.data_samples import picture
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.backbones.internvl import InternVLBackbone
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_layout import moe_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.models.generate import decode, greedy, prefill
from ts_lightning.models.packing import branch_mask, pack_groups
from ts_lightning.runs.export import write_standalone
from ts_lightning.runs.load import load
from ts_lightning.training import SFT

WORDS = 2048


def llava_config(**more: Any) -> dict[str, Any]:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return json.loads(LlavaConfig(vision_config=vision, text_config=text, **more).to_json_string(use_diff=False))


def qwen_config(kind: Any = Qwen2VLConfig) -> dict[str, Any]:
    text = {
        "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    if kind is Qwen2VLConfig:
        vision: dict[str, Any] = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    else:
        vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
                  "fullatt_block_indexes": [1]}  # fmt: skip
    return json.loads(kind(text_config=text, vision_config=vision).to_json_string(use_diff=False))


def internvl_config() -> dict[str, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": [56, 56], "patch_size": [14, 14]}  # fmt: skip
    text = {"model_type": "qwen2", "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    return json.loads(InternVLConfig(vision_config=vision, text_config=text).to_json_string(use_diff=False))


def moe_public() -> dict[str, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    more = {"model_type": "moe_llava_phi", "num_attention_heads": 4, "vision_config": vision}
    return sizes | more | {"moe": moe_config([0, 2], 4, top_k=2)}


def sample(task: str, size: tuple[int, int] = (80, 60), seed: int = 0) -> Sample:
    box = (0.25, 0.25, 0.75, 0.5)
    return Sample(
        id=f"{task}{seed}",
        key=f"{task}{seed}",
        task=task,
        images=[SampleImage("a.jpg", *size)],
        turns=[
            Turn("user", "<image>\nWhere is the star?" + (" Answer with a box." if task == "grounding" else "")),
            Turn("assistant", "{region:0}" if task == "grounding" else "left"),
        ],
        regions=[SampleRegion(box=box)],
        answer=Answer(regions=[0]) if task == "grounding" else Answer("left"),
        image_bytes=[picture(seed, size)],
    )


SAMPLES = [sample("grounding"), sample("understanding", (50, 90), 1), sample("grounding", (40, 40), 2)]
MAKERS = {
    "llava": lambda: LlavaBackbone(config=llava_config()),
    "llava_linear": lambda: LlavaBackbone(config=llava_config(), projector="linear", codec="chatspot"),
    "qwen2_vl": lambda: QwenVLBackbone(config=qwen_config()),
    "internvl": lambda: InternVLBackbone(config=internvl_config()),
    "moe_llava": lambda: MoELlavaBackbone(config=moe_public()),
    "qwen2_5_vl": lambda: QwenVLBackbone(config=qwen_config(Qwen2_5_VLConfig)),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]


def batch_of(vlm: Any, samples: list[Sample], for_generation: bool = False, side: str = "right") -> dict[str, Any]:
    return collate([vlm.encode(s, for_generation) for s in samples], vlm.pad_id, side)


def understanding_logits(vlm: Any, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return vlm.eval()(batch_of(vlm, samples))["logits"]


def train_steps(vlm: Any, steps: int = 20) -> None:
    vlm.train()
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        out = vlm(batch_of(vlm, SAMPLES))
        torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_retention_is_bitwise_and_only_the_package_trains(make: Any) -> None:
    backbone = make()
    asked = [SAMPLES[1], sample("understanding", (64, 64), 5)]
    before = understanding_logits(PlainVLM(backbone, train=()), asked)
    vlm = TwinExpertVLM(backbone)
    # Bitwise here and below: the same modules and memory on the same batch, product by product. Equal weights elsewhere
    # in memory are not enough: MKL rounds by the address on processors without AVX-512.
    assert torch.equal(before, understanding_logits(vlm, asked))
    frozen = {k: v.clone() for k, v in vlm.state_dict().items() if "packages" not in k}
    vlm.train()
    out = vlm(batch_of(vlm, SAMPLES))
    torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
    for name, parameter in vlm.named_parameters():
        assert parameter.requires_grad == ("packages" in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    train_steps(vlm)
    assert torch.equal(before, understanding_logits(vlm, asked))
    state = vlm.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in frozen.items())
    mixed = batch_of(vlm, [SAMPLES[0], *asked])
    with torch.no_grad():
        logits, rows = (vlm.eval()(mixed)[k] for k in ("logits", "positions"))
    torch.testing.assert_close(logits[rows[0] > 0], before, atol=1e-5, rtol=1e-5)


def test_generation_with_the_cache_equals_without(make: Any) -> None:
    vlm = TwinExpertVLM(make()).eval()
    train_steps(vlm, 3)
    vlm.eval()
    rows = [vlm.encode(s, True) for s in SAMPLES]
    with torch.no_grad():
        together = torch.stack(list(decode(prefill(vlm, collate(rows, vlm.pad_id, "left")), greedy, {-1}, 6)), 1)
        for row, said in zip(rows, together, strict=True):  # alone, and without a cache: one prefill a token
            for count in range(6):
                batch = collate([extended(vlm, row, said[:count])], vlm.pad_id, "left")
                logits_V = prefill(vlm, batch).logits_BV[0]
                logits_V[[vlm.pad_id, vlm.backbone.image_token_id]] = -torch.inf
                assert logits_V.argmax() == said[count]


def extended(vlm: Any, row: dict[str, Any], more: torch.Tensor) -> dict[str, Any]:
    """A row with tokens behind it; positions of several axes go on from the largest."""
    row = dict(row)
    row["input_ids"] = torch.cat([row["input_ids"], more])
    row["step_ids"] = torch.cat([row["step_ids"], torch.full_like(more, -1)])
    if "position_ids" in row and len(more):
        new = row["position_ids"].max() + 1 + torch.arange(len(more))
        row["position_ids"] = torch.cat([row["position_ids"], new.expand(3, -1)], 1)
    return row


def test_left_and_right_padding_agree(make: Any) -> None:
    vlm = TwinExpertVLM(make()).eval()
    right, left = (batch_of(vlm, SAMPLES, side=side) for side in ("right", "left"))
    with torch.no_grad():
        a, b = vlm(right), vlm(left)
    torch.testing.assert_close(a["logits"], b["logits"], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="padded on the right"):
        vlm.generate(batch_of(vlm, SAMPLES, True, "right"))


def test_save_load_same_logits(make: Any, tmp_path: Path) -> None:
    backbone = make()
    vlm = TwinExpertVLM(backbone)
    train_steps(vlm, 2)
    batch = batch_of(vlm, SAMPLES)
    with torch.no_grad():
        expected = vlm.eval()(batch)["logits"]
    vlm.save_pretrained(tmp_path / "package")
    vlm.remove_packages()
    backbone.save(tmp_path / "base")
    again = reloaded(backbone, tmp_path / "base")
    assert again.identity()["sha256"] == backbone.identity()["sha256"]
    with torch.no_grad():  # not bitwise: weights that were read lie at other addresses
        logits = TwinExpertVLM.from_pretrained(tmp_path / "package", again)(batch)["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_exports_stand_alone(make: Any, tmp_path: Path) -> None:
    base = make()
    targets = ["fc1", "fc2"] if isinstance(base, MoELlavaBackbone) else ["gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)  # of the adapters
    for vlm in (TwinExpertVLM(base), LoRAVLM(make(), rank=2, dropout=0, targets=targets)):
        train_steps(vlm, 2)
        batch = batch_of(vlm, SAMPLES)
        with torch.no_grad():
            expected = vlm.eval()(batch)["logits"]
        if isinstance(vlm, LoRAVLM) and not isinstance(base, MoELlavaBackbone):
            make().save(tmp_path / "base")
            vlm.save_pretrained(tmp_path / "adapter")
            if "linear" not in str(base.model.config.to_dict().get("projector")):  # peft on the plain model
                plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
                theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
                ids = torch.arange(5, 25)[None]
                with torch.no_grad():
                    torch.testing.assert_close(
                        theirs(input_ids=ids).logits, vlm.backbone.model(input_ids=ids).logits, rtol=1e-6, atol=1e-6
                    )
        folder = tmp_path / type(vlm).__name__
        write_standalone(SFT(vlm), folder)
        with torch.no_grad():
            again = load(folder).vlm.eval()(batch)["logits"]
        # weights that were read lie at other addresses, where a product may round otherwise; merging rounds more
        exact = 1e-6 if isinstance(vlm, TwinExpertVLM) else 5e-5
        torch.testing.assert_close(again, expected, atol=exact, rtol=exact)


def reloaded(backbone: Backbone, folder: Path) -> Backbone:
    keep = {k: v for k, v in backbone.init_args.items() if k not in ("pretrained", *backbone.made_by)}
    return type(backbone)(pretrained=str(folder), **keep)


def test_a_linear_projector_is_kept(tmp_path: Path) -> None:
    first = LlavaBackbone(config=llava_config(), projector="linear")
    assert first.model.model.multi_modal_projector.linear.weight.shape == (32, 32)
    first.save(tmp_path)
    again = LlavaBackbone(str(tmp_path))
    assert again.identity()["sha256"] == first.identity()["sha256"]
    mlp = tmp_path / "mlp"
    LlavaBackbone(config=llava_config()).save(mlp)
    fresh = LlavaBackbone(str(mlp), projector="linear")  # ChatSpot starts from LLaMA and CLIP
    assert fresh.model.model.multi_modal_projector.linear.weight.shape == (32, 32)
    with pytest.raises(ValueError, match="seen no config"):
        LlavaBackbone(str(tmp_path / "absent"))


def test_completions_behind_one_prompt_are_rows_of_their_own(make: Any) -> None:
    vlm = TwinExpertVLM(make()).eval()
    prompts = [vlm.encode(s, True) for s in (SAMPLES[0], SAMPLES[2])]
    groups = [[[5, 6, 7], [8, 9]], [[10], [11, 12, 13]]]
    packed = pack_groups(collate(prompts, vlm.pad_id), groups, vlm.pad_id)
    with torch.no_grad(), vlm.routing(packed) as context:
        hidden_BTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(packed, context),
            attention_mask=branch_mask(packed["branch"]),
            position_ids=packed["position_ids"],
            use_cache=False,
        ).last_hidden_state
        rows_K = packed["rows"]
        together = vlm.logits(hidden_BTH[rows_K, packed["predictors"]], packed["task"][rows_K], context)
        alone = []
        for prompt, group in zip(prompts, groups, strict=True):
            for completion in group:
                row = extended(vlm, prompt, torch.tensor(completion))
                row["step_ids"][-len(completion) :] = 0
                alone.append(vlm(collate([row], vlm.pad_id))["logits"])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_isolated_steps_do_not_see_each_other(make: Any) -> None:
    vlm = TwinExpertVLM(make()).eval()
    one = sample("grounding")
    one.turns[1].text = "Step 1: a star. Step 2: it is at {region:0}"
    row = vlm.encode(one)
    changed = {**row, "input_ids": row["input_ids"].clone()}
    first = (row["step_ids"] == 0).nonzero().squeeze(1)
    changed["input_ids"][first[1]] = 5
    with torch.no_grad():
        for isolated in (True, False):
            a, b = (vlm(collate([r], vlm.pad_id), isolated=isolated) for r in (row, changed))
            second = row["step_ids"][a["positions"][1]] == 1
            assert second.any()
            # not bitwise: a changed token may go to another expert, whose products then have other rows
            tolerance = 1e-6 if isolated else 1e-4
            assert torch.allclose(a["logits"][second], b["logits"][second], tolerance, tolerance) == isolated


def test_recomputed_activations_give_the_same_gradients(make: Any) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        vlm = TwinExpertVLM(make(), activation_checkpointing=recompute).train()
        out = vlm(batch_of(vlm, SAMPLES))
        torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
        gradients.append({name: p.grad for name, p in vlm.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():  # bitwise: a recomputed product is the same product
        assert torch.equal(gradient, gradients[1][name]), name


def test_dropout_of_the_public_file_is_for_tuning_of_the_whole_model() -> None:
    public = moe_public() | {"resid_pdrop": 0.1}
    rates = [MoELlavaBackbone(config=public, dropout=on).model.config.text_config.resid_pdrop for on in (False, True)]
    assert rates == [0.0, 0.1]
