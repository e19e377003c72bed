"""The twin-expert vlm over the tiny backbone: retention, gradients, isolation, decoding.

Bitwise: token ids, weights that are copied, and what runs the same modules on the same rows.
"""

from pathlib import Path

import pytest
import torch

from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.generate import decode, greedy, prefill
from ts_lightning.models.vlm import VLM, Recomputed, predictors
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples
from ts_lightning.runs.export import export
from ts_lightning.runs.load import load
from ts_lightning.training import SFT

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "vision_layers": 1, "num_heads": 2}
GROUNDING = list(grounding_samples("train", 6, ("localization", "scout")))
UNDERSTANDING = list(understanding_samples("train", 6))


def backbone() -> TinyBackbone:
    return TinyBackbone(pretrained=None, **SIZES)


def twin(**options: object) -> TwinExpertVLM:
    return TwinExpertVLM(backbone(), **{"train_token_rows": ["codec"], **options})


def batch(vlm: VLM, samples: list, for_generation: bool = False) -> dict:
    rows = [vlm.encode(sample, for_generation) for sample in samples]
    return collate(rows, vlm.pad_id, "left" if for_generation else "right")


def shaken(vlm: TwinExpertVLM) -> TwinExpertVLM:
    """The vlm with everything that trains moved away from its start."""
    torch.manual_seed(1)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return vlm


def bare(vlm: TwinExpertVLM) -> PlainVLM:
    """The base of a vlm, which has no packages afterwards."""
    vlm.remove_packages()
    return PlainVLM(vlm.backbone, train=()).eval()


@torch.no_grad()
def test_understanding_batch_is_bitwise_the_base() -> None:
    tuned = shaken(twin()).eval()
    rows, prompts = batch(tuned, UNDERSTANDING), batch(tuned, UNDERSTANDING, for_generation=True)
    logits, words = tuned(rows)["logits"], tuned.generate(prompts, 8)
    base = bare(tuned)
    # bitwise: no row of a skill is in the batch, so both run the same products, over the same memory
    assert torch.equal(logits, base(rows)["logits"])
    assert words == base.generate(prompts, 8)


@torch.no_grad()
def test_mixed_batch_keeps_understanding_rows() -> None:
    tuned, base = shaken(twin()).eval(), PlainVLM(backbone()).eval()
    rows = batch(tuned, UNDERSTANDING + GROUNDING)
    ours, theirs = tuned(rows)["logits"], base(rows)["logits"]
    understood = rows["task"][tuned(rows)["positions"][0]] == 0
    torch.testing.assert_close(ours[understood], theirs[understood], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours[~understood], theirs[~understood], atol=1e-3)


@torch.no_grad()
def test_alpha_of_one_is_the_base() -> None:
    tuned = shaken(twin()).eval()
    rows = batch(tuned, GROUNDING)
    forced, own = tuned(rows, alpha=1.0)["logits"], tuned(rows)["logits"]
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"alpha: seen .*, expected 0 .* to 1"):
            tuned(rows, alpha=alpha)
    base = bare(tuned)
    assert torch.equal(forced, base(rows)["logits"])  # bitwise: with alpha 1 no grounding expert is run
    assert not torch.allclose(own, base(rows)["logits"], atol=1e-3)
    with pytest.raises(ValueError, match=r"alpha: seen 0.5 for a PlainVLM, expected a vlm with twin experts"):
        base(rows, alpha=0.5)


@pytest.mark.parametrize("samples", [GROUNDING, UNDERSTANDING, GROUNDING[:1]])
def test_every_trainable_parameter_gets_a_gradient(samples: list) -> None:
    vlm = twin(num_experts=2).train()
    vlm(batch(vlm, samples))["logits"].sum().backward()
    for name, parameter in vlm.named_parameters():
        trains = "packages" in name or "token_rows" in name
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for switch in (False, "attention", "block"):
        torch.manual_seed(0)
        vlm = shaken(twin(activation_checkpointing=switch)).train()
        vlm(batch(vlm, GROUNDING))["logits"].square().mean().backward()
        gradients.append({n: p.grad for n, p in vlm.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert gradients[0].keys() == other.keys()
        for name, gradient in gradients[0].items():  # bitwise: a recomputed product is the same product
            assert torch.equal(gradient, other[name]), name


def test_what_is_recomputed() -> None:
    for choice, names in ((True, [f"layers.{i}" for i in range(4)]), ("none", []), ("attention", None)):
        vlm = PlainVLM(backbone(), activation_checkpointing=choice)
        found = [name for name, module in vlm.backbone.decoder.named_modules() if isinstance(module, Recomputed)]
        assert found == ([f"layers.{i}.self_attn" for i in range(4)] if names is None else names)
    for train, blocks in ((["*"], 1), (["*language_model*"], 0)):  # a tower that is frozen stays as it is
        model = PlainVLM(backbone(), train, activation_checkpointing=True).backbone.model
        tower = [module for name, module in model.named_modules() if "vision" in name]
        assert sum(isinstance(module, Recomputed) for module in tower) == blocks
    with pytest.raises(ValueError, match="activation_checkpointing: seen 'mlp', expected none, attention or block"):
        PlainVLM(backbone(), activation_checkpointing="mlp")


def test_predictors_by_hand() -> None:
    step_ids = torch.tensor([[-1, -1, 0, 0, 1, 1, -1, 2]])
    assert predictors(step_ids, isolated=False)[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert predictors(step_ids, isolated=True)[0, [2, 3, 4, 5, 7]].tolist() == [1, 2, 1, 4, 6]


@torch.no_grad()
def test_isolated_steps_do_not_see_each_other() -> None:
    vlm = shaken(twin()).eval()
    rows = batch(vlm, [s for s in GROUNDING if s.subtask == "scout"][:1])
    changed = {**rows, "input_ids": rows["input_ids"].clone()}
    second = (rows["step_ids"] == 1).nonzero()[2]
    changed["input_ids"][tuple(second)] = vlm.tokenizer.convert_tokens_to_ids("Ġred")
    isolated, other = vlm(rows, isolated=True), vlm(changed, isolated=True)
    steps = rows["step_ids"][isolated["positions"]]
    # not bitwise: a changed token may go to another expert, whose products then have other rows
    unseen = steps != 1
    torch.testing.assert_close(isolated["logits"][unseen], other["logits"][unseen], rtol=1e-6, atol=1e-6)
    causal, causal_other = vlm(rows)["logits"], vlm(changed)["logits"]
    assert not torch.allclose(causal[steps > 1], causal_other[steps > 1], atol=1e-4)


@torch.no_grad()
def test_greedy_decoding_equals_transformers() -> None:
    vlm = PlainVLM(backbone()).eval()
    prompts = batch(vlm, UNDERSTANDING, for_generation=True)
    ours = torch.stack(list(decode(prefill(vlm, prompts), greedy, {vlm.tokenizer.eos_token_id}, 12)), 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (vlm.backbone.pixel_mean, vlm.backbone.pixel_std))
    theirs = vlm.backbone.model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["valid"].long(),
        pixel_values=(prompts["pixel_values"] / 255 - mean) / std,
        max_new_tokens=12,
        do_sample=False,
    )[:, prompts["input_ids"].shape[1] :]
    assert torch.equal(ours, theirs[:, : ours.shape[1]])


@torch.no_grad()
def test_expanded_group_equals_repeated_prompts() -> None:
    vlm = shaken(twin()).eval()
    prompts = batch(vlm, GROUNDING[:2], for_generation=True)
    group = prefill(vlm, prompts).expand(3)
    tokens = torch.stack(list(decode(group, greedy, {vlm.tokenizer.eos_token_id}, 6)), 1)
    alone = torch.stack(list(decode(prefill(vlm, prompts), greedy, {vlm.tokenizer.eos_token_id}, 6)), 1)
    assert torch.equal(tokens, alone.repeat_interleave(3, 0))


@torch.no_grad()
def test_padding_side_does_not_matter() -> None:
    vlm = shaken(twin()).eval()
    rows = [vlm.encode(sample) for sample in GROUNDING]
    right, left = (vlm(collate(rows, vlm.pad_id, side))["logits"] for side in ("right", "left"))
    torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-5)


def test_alpha_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        twin(alpha_init=1.0)


def test_weights_round_trip_and_refusals() -> None:
    one, two = shaken(twin()), twin()
    two.load_trainable_state_dict(one.trainable_state_dict())
    for name, value in one.trainable_state_dict().items():
        assert torch.equal(value, two.trainable_state_dict()[name])
    with pytest.raises(ValueError, match="seen shape"):
        twin(num_experts=2, every=2).load_trainable_state_dict(
            {n: v[:1] if v.ndim else v for n, v in one.trainable_state_dict().items()}
        )


def test_new_tokens_of_a_plain_vlm_are_rows_of_its_matrices() -> None:
    base, new = PlainVLM(backbone()).eval(), ["<point>", "</point>"]
    vlm = PlainVLM(backbone(), new_tokens=[*new, "<box>"]).eval()  # the last one is a token already
    size, ids = len(base.backbone.embedding.weight), vlm.encoder.token_ids(new)
    assert ids == [size, size + 1]
    pieces = [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in new]
    assert min(map(len, pieces)) > 1
    for matrix, old in zip(
        (vlm.backbone.embedding.weight, vlm.backbone.head.weight),
        (base.backbone.embedding.weight, base.backbone.head.weight),
        strict=True,
    ):
        expected = torch.stack([old[ids].mean(0) for ids in pieces])
        torch.testing.assert_close(matrix[size:], expected)
        assert torch.equal(matrix[:size], old)
    said = [sample for sample in UNDERSTANDING]
    with torch.no_grad():
        torch.testing.assert_close(vlm(batch(vlm, said))["logits"][:, :size], base(batch(base, said))["logits"])
    again = PlainVLM(backbone(), new_tokens=new)
    vlm.backbone.embedding.weight.data += 1.0
    again.load_trainable_state_dict(vlm.trainable_state_dict())
    assert torch.equal(again.backbone.embedding.weight, vlm.backbone.embedding.weight)


def test_rows_of_other_new_tokens_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two rows fit behind any two texts; a stage that trained none of the matrices says nothing of their rows."""
    vlm, path = PlainVLM(backbone(), new_tokens=["<loc>", "</loc>"]), tmp_path / "x.ckpt"
    state = {f"vlm.{key}": value for key, value in vlm.trainable_state_dict().items()}
    config = {"model": {"init_args": {"vlm": {"init_args": {"new_tokens": ["<loc>", "</loc>"]}}}}}
    torch.save({"state_dict": state, "base": vlm.identity(), "config": config}, path)
    PlainVLM(backbone(), new_tokens=["<loc>", "</loc>"], init_from=str(path))
    with pytest.raises(ValueError, match=r"x.ckpt: new_tokens: seen .* trained with \['<loc>', '</loc>'\], expected"):
        PlainVLM(backbone(), new_tokens=["</loc>", "<loc>"], init_from=str(path))
    few = {key: value for key, value in state.items() if "norm" in key}
    assert few
    torch.save({"state_dict": few, "base": vlm.identity(), "config": config}, path)
    PlainVLM(backbone(), new_tokens=["<part>"], init_from=str(path))
    assert "init_from" not in caplog.text
    other = TinyBackbone(**{**backbone().init_args, "codec": "mirg"})
    PlainVLM(other, new_tokens=["<part>"], init_from=str(path))
    assert "init_from" in caplog.text
    assert "trained to write {'frame': 'original', 'grid': '100', 'name': 'scout'}" in caplog.text


def test_a_standalone_model_has_its_new_tokens(tmp_path: Path) -> None:
    vlm, new = PlainVLM(backbone(), new_tokens=["<point>"]), "a <point> b"
    export(SFT(vlm), "standalone", tmp_path)
    again = load(tmp_path).vlm
    assert again.tokenizer(new)["input_ids"] == vlm.tokenizer(new)["input_ids"]
    assert len(vlm.tokenizer) - 1 in vlm.tokenizer(new)["input_ids"]
    assert not any(parameter.requires_grad for parameter in again.parameters())  # it answers
    export(load(tmp_path), "checkpoint", tmp_path / "again.ckpt")
    assert torch.equal(load(tmp_path / "again.ckpt").vlm.backbone.embedding.weight, vlm.backbone.embedding.weight)
