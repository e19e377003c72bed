"""The retention certificate on models small enough to break in every way that it has to notice."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ts_lightning.reports.retention import certify, compare_frozen, compare_logits, tensor_sha256

WORDS = ["red", "blue", "green"]


class TwinSlot(nn.Module):
    def __init__(self, understanding: nn.Module) -> None:
        super().__init__()
        self.understanding = understanding
        self.grounding = copy.deepcopy(understanding)
        self.leak = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.understanding(x)
        return 0.5 * y + 0.5 * self.grounding(x) if self.leak else y


class TinyVLM(nn.Module):
    """Looks like a VLM to the certificate: `backbone.model`, a forward with logits, and `generate`."""

    def __init__(self, twin: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "mlp": nn.Linear(4, 4), "head": nn.Linear(4, 3)})
        model.register_buffer("frequencies", torch.arange(3.0), persistent=False)
        for parameter in model.parameters():
            parameter.requires_grad = False
        if twin:
            model["mlp"] = TwinSlot(model["mlp"])
            for parameter in model["mlp"].grounding.parameters():
                parameter.requires_grad = True
                parameter.data += 1.0
        self.backbone = nn.Module()
        self.backbone.model = model

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        model = self.backbone.model
        return {"logits": model["head"](torch.tanh(model["mlp"](model["embed"](batch["input_ids"]))))}

    def generate(self, batch: dict[str, Any], max_new_tokens: int) -> list[str]:
        return [WORDS[i] for i in self(batch)["logits"].argmax(1).tolist()]


def batch(tasks: list[int] | None = None, answers: list[list[str]] | None = None) -> dict[str, Any]:
    ids = torch.arange(4)
    return {
        "input_ids": ids,
        "task": torch.tensor(tasks or [0] * 4),
        "row_valid": torch.tensor([True] * 4),
        "samples": [SimpleNamespace(accepted_answers=a) for a in answers or [["red"], ["red"], ["blue"], ["green"]]],
    }


def test_a_twin_model_passes() -> None:
    base = TinyVLM(twin=False)
    result = certify(TinyVLM(twin=True), base, [batch(), batch()], [batch()])
    assert result["passed"]
    assert result["differing"] == []
    assert sorted(result["sha256"]) == [
        "embed.weight", "frequencies", "head.bias", "head.weight", "mlp.bias", "mlp.weight",
    ]  # fmt: skip
    assert result["tensors_compared"] == 6
    assert result["logits"] == {"batches": 2, "positions": 8, "max_abs_diff": 0.0, "bitwise_equal": True}
    right = sum(
        text in sample.accepted_answers
        for text, sample in zip(base.generate(batch(), 1), batch()["samples"], strict=True)
    )
    assert result["accuracy"] == {"before": right / 4, "after": right / 4, "questions": 4, "answers_changed": 0}
    json.dumps(result, allow_nan=False)


def next_float(tensor: Tensor) -> None:
    tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(10.0))


@pytest.mark.parametrize("name", ["embed.weight", "mlp.understanding.bias", "frequencies"])
def test_one_bit_in_a_frozen_tensor_is_found(name: str) -> None:
    tuned = TinyVLM(twin=True)
    next_float(
        {**dict(tuned.backbone.model.named_parameters()), **dict(tuned.backbone.model.named_buffers())}[name].data
    )
    result = certify(tuned, TinyVLM(twin=False), [batch()], [batch()])
    assert not result["passed"]
    assert result["differing"] == [name.replace(".understanding", "")]


def test_a_lost_and_a_trainable_tensor_differ() -> None:
    tuned = TinyVLM(twin=True).backbone.model
    tuned["head"].bias = None
    tuned["embed"].weight.requires_grad = True
    assert compare_frozen(tuned, TinyVLM(twin=False).backbone.model)["differing"] == ["embed.weight", "head.bias"]


def test_a_leaking_path_is_found_although_all_tensors_are_equal() -> None:
    tuned = TinyVLM(twin=True)
    tuned.backbone.model["mlp"].leak = True
    result = certify(tuned, TinyVLM(twin=False), [batch()], [batch()])
    assert (result["passed"], result["differing"]) == (False, [])
    assert not result["logits"]["bitwise_equal"]
    assert result["logits"]["max_abs_diff"] > 0


def test_nothing_compared_is_no_proof() -> None:
    assert not certify(TinyVLM(twin=True), TinyVLM(twin=False), [], [batch()])["passed"]
    assert not certify(TinyVLM(twin=True), TinyVLM(twin=False), [batch()], [])["passed"]


def test_skill_rows_and_the_same_model_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rows of task understanding only"):
        certify(TinyVLM(twin=True), TinyVLM(twin=False), [batch(tasks=[0, 1, 0, 0])], [])
    tuned = TinyVLM(twin=True)
    with pytest.raises(ValueError, match="one model twice"):
        certify(tuned, tuned, [batch()], [batch()])


def test_added_token_columns_have_to_be_minus_infinity() -> None:
    logits = torch.randn(4, 3)
    closed = torch.cat([logits, torch.full((4, 2), -torch.inf)], dim=1)
    for ours, expected in ((closed, True), (closed.nan_to_num(neginf=-1e9), False), (logits[:2], False)):
        assert compare_logits(lambda _, ours=ours: ours, lambda _: logits, [batch()])["bitwise_equal"] is expected


def test_sha256_sees_shape_and_dtype() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(())]
    assert len({tensor_sha256(tensor) for tensor in zeros}) == 4
    assert tensor_sha256(torch.arange(4.0).view(2, 2).t()) == tensor_sha256(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
