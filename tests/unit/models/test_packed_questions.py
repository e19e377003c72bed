"""Questions behind their pictures in one row: loss, parts and every gradient as of rows of their own."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.data_samples import picture
from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_backbones import MAKERS
from ts_lightning.data.collate import collate, join, seen_pairs
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.losses import RowLoss, Stepwise, TokenMean
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.packing import branch_mask, of_questions, pack_questions

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vision_layers": 1, "num_heads": 2}
BACKBONES = {
    "tiny": lambda: TinyBackbone(pretrained=None, **SIZES),
    **{name: MAKERS[name] for name in ("llava", "qwen2_vl", "moe_llava")},
}
LOSSES = {
    "token_mean": TokenMean(),
    "sum": Stepwise("sum", 0.01),
    "step_mean": Stepwise("step_mean", 0.01),
    "isolated": Stepwise("sum", 0.01, isolated=True),
}
ANSWERS = [
    "{region:0}",
    "Step 1: Find the star {region:0}. Step 2: So it is at {region:1}.",
    "a star",
    "Step 1: x. Step 2: y",
]


def questions(pictures: int, number: int, task: str = "grounding", seed: int = 0) -> list[Sample]:
    """Questions about the same pictures, of different lengths, some in steps, one with an earlier turn."""
    samples, data = [], [picture(seed + i, (60 + 10 * i, 80)) for i in range(pictures)]
    for j in range(number):
        turns = [Turn("user", "<image>\n" * pictures + f"Where is the star{' of many' * (j % 3)}?")]
        if j % 4 == 3:
            turns += [Turn("assistant", "It is there."), Turn("user", "Where exactly?")]
        samples.append(
            Sample(
                id=f"{task}-{seed}-{j}",
                key=f"{task}-{seed}-{j}",
                task=task,
                images=[SampleImage(f"{i}.jpg", 60 + 10 * i, 80) for i in range(pictures)],
                turns=[*turns, Turn("assistant", ANSWERS[j % 4])],
                regions=[SampleRegion(box=(0.25, 0.25, 0.75, 0.5)), SampleRegion(box=(0.1, 0.2, 0.3, 0.4))],
                answer=Answer(regions=[0]),
                image_bytes=data,
            )
        )
    return samples


def image_id(vlm: Any) -> int:
    return vlm.backbone.image_token_id


def results(vlm: Any, loss: RowLoss, batch: dict[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Every part of each question's loss, and the gradients of all parameters."""
    vlm.zero_grad()
    rows = loss(vlm(batch, isolated=loss.isolated), batch)
    rows["loss"].sum().backward()
    ids = [sample.id for sample in batch["samples"]]
    parts = {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in rows.items()}
    return parts, {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


def check(vlm: Any, loss: RowLoss, groups: list[list[Sample]], floor: float = 0.01, joined: bool = False) -> None:
    """Equal to 1e-6; gradients below `floor` of the largest tensor's are held against that: sums that cancel round."""
    tolerance = 1e-6
    rows = [[vlm.encode(sample) for sample in group] for group in groups]
    packed = [one for group in rows for one in pack_questions(group, image_id(vlm))]
    assert len(packed) < sum(map(len, rows))
    packed = join(packed) if joined else packed
    ours, grads = results(vlm, loss, collate(packed, vlm.pad_id))
    theirs, expected = results(vlm, loss, collate([row for group in rows for row in group], vlm.pad_id))
    for name, values in theirs.items():
        assert ours[name].keys() == values.keys()
        for key, value in values.items():
            assert ours[name][key] == pytest.approx(value, rel=tolerance, abs=1e-7), (name, key)
    scale = torch.stack([g.norm() for g in expected.values()]).max()
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= tolerance * max(grad.norm(), floor * scale), name


def twin(make: Callable) -> Any:
    torch.manual_seed(0)
    vlm = TwinExpertVLM(make(), every=1, num_experts=2, train_token_rows=["codec"]).train()
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return vlm


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_to_rows_of_their_own(backbone: str, loss: str) -> None:
    try:
        vlm = twin(BACKBONES[backbone])
    except ValueError:  # no tokens of coordinates in this tokenizer
        vlm = TwinExpertVLM(BACKBONES[backbone](), every=1, num_experts=2).train()
    check(vlm, LOSSES[loss], [questions(2, 5), questions(1, 1, seed=7), questions(1, 3, "understanding", 9)])


@pytest.mark.parametrize(("pictures", "number"), [(1, 16), (4, 2), (3, 8)])
def test_pictures_and_questions(pictures: int, number: int) -> None:
    check(twin(BACKBONES["tiny"]), LOSSES["step_mean"], [questions(pictures, number)])


@pytest.mark.parametrize("make", [PlainVLM, partial(LoRAVLM, rank=4, dropout=0.0, targets=["q_proj", "down_proj"])])
def test_everything_that_trains(make: Any) -> None:
    check(make(BACKBONES["qwen2_vl"]()), LOSSES["token_mean"], [questions(2, 4), questions(1, 2, seed=5)])


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_a_folder_of_any_family(family: str, tmp_path: Path) -> None:
    """DeepStack features of pictures, and pictures that are seen both ways beside sliding windows."""
    vlm = TwinExpertVLM(HFBackbone(str(make_folder(family, tmp_path))), every=1, num_experts=2).train()
    for loss in ("step_mean", "isolated"):
        check(vlm, LOSSES[loss], [questions(2, 3), questions(1, 2, seed=5)], floor=0.2)


@pytest.mark.parametrize(("backbone", "loss"), [("tiny", "isolated"), ("qwen2_vl", "step_mean"), ("moe_llava", "sum")])
def test_records_in_one_row(backbone: str, loss: str) -> None:
    """Rows of both tasks and of one question: a row without padding of each task."""
    vlm = TwinExpertVLM(BACKBONES[backbone](), every=1, num_experts=2).train()
    groups = [questions(2, 3), questions(1, 1, seed=7), questions(1, 2, "understanding", 9), questions(1, 4, seed=5)]
    check(vlm, LOSSES[loss], groups, joined=True)


def test_low_rank_experts_on_packed_rows() -> None:
    vlm = TwinExpertVLM(BACKBONES["tiny"](), every=1, num_experts=2, expert_rank=4).train()
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    for joined in (False, True):
        check(vlm, LOSSES["step_mean"], [questions(1, 5), questions(1, 2, seed=3)], joined=joined)


def test_pairs_that_see_each_other_are_counted() -> None:
    vlm = PlainVLM(BACKBONES["tiny"]())
    rows = [vlm.encode(sample) for sample in questions(1, 3)]
    (packed,) = pack_questions(rows, image_id(vlm))
    assert seen_pairs(packed) == int(branch_mask(packed["branch"][None]).sum())
    assert seen_pairs(rows[0]) == int(branch_mask(torch.zeros(1, len(rows[0]["input_ids"]))).sum())


def test_a_model_whose_pictures_see_the_question_does_not_pack(tmp_path: Path) -> None:
    encoder = HFBackbone(str(make_folder("paligemma", tmp_path))).encoder
    assert not encoder.packs
    assert not encoder.joins
    with pytest.raises(ValueError, match="questions_per_row: seen several for a model whose pictures see the question"):
        encoder.pack([])


def test_tasks_stay_apart_and_so_do_other_prefixes() -> None:
    vlm = twin(BACKBONES["tiny"])
    mixed = questions(1, 2) + questions(1, 2, "understanding")
    rows = pack_questions([vlm.encode(sample) for sample in mixed], image_id(vlm))
    assert [(row["task"], len(row["sample"])) for row in rows] == [(1, 2), (0, 2)]
    check(vlm, LOSSES["step_mean"], [mixed])
    late = [replace(s, turns=[Turn("user", f"{i}, where in <image>?"), *s.turns[1:]]) for i, s in enumerate(mixed[:2])]
    apart = pack_questions([vlm.encode(sample) for sample in late], image_id(vlm))
    assert len(apart) == 2
    assert not any("columns" in row for row in apart)


def test_the_same_question_twice() -> None:
    vlm = twin(BACKBONES["tiny"])
    one, other = questions(1, 2)
    twice = [one, replace(one, id="again", turns=[one.turns[0], other.turns[-1]]), replace(one, id="equal")]
    for loss in LOSSES.values():
        check(vlm, loss, [twice])


def test_a_packed_row_by_hand() -> None:
    def row(ids: list[int], steps: list[int], name: str) -> dict[str, Any]:
        return {"input_ids": torch.tensor(ids), "step_ids": torch.tensor(steps), "task": 1, "sample": name}

    rows = [row([1, 9, 9, 5, 6], [-1, -1, -1, -1, 0], "a"), row([1, 9, 9, 7, 8, 8], [-1] * 4 + [0, 1], "b")]
    (packed,) = pack_questions(rows, 9)
    assert packed["input_ids"].tolist() == [1, 9, 9, 5, 6, 7, 8, 8]
    assert packed["branch"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert packed["position_ids"].tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert [c.tolist() for c in packed["columns"]] == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7]]
    assert packed["sample"] == ["a", "b"]


def test_levels_of_a_mask_all_have_to_allow() -> None:
    question, step = torch.tensor([[0, 1, 1, 1, 2]]), torch.tensor([[0, 0, 1, 2, 0]])
    seen = branch_mask(torch.stack([question, step]))[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_tokens_of_a_prefix_are_every_questions() -> None:
    flat = torch.tensor([[0, 1, -1], [0, 2, 3]])
    places, owners = of_questions(torch.tensor([0, 2, 1]), flat, 5)  # token 3 is not counted
    assert (places.tolist(), owners.tolist()) == ([0, 2, 0, 1], [0, 0, 1, 1])
