"""The arithmetic of a step's operations against torch's own count of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.models.test_packed_questions import BACKBONES, questions
from ts_lightning.data.collate import collate
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.flops import step_flops

INPLACE = {torch.ops.aten.addmm_: lambda own, a, b, *given, **named: 2 * a[0] * a[1] * b[1]}


def text_batch(vlm: Any) -> dict[str, Any]:
    """Two rows of 40 random tokens, with losses on the last seven."""
    rows, sample = [], replace(questions(1, 1)[0], images=[], image_bytes=[])
    for seed in range(2):
        ids_T = torch.randint(10, 90, (40,), generator=torch.Generator().manual_seed(seed))
        step_ids_T = torch.where(torch.arange(40) < 33, -1, 0)
        pictures = vlm.encoder.picture_tensors(sample, ids_T)
        rows.append({"input_ids": ids_T, "step_ids": step_ids_T, **pictures, "task": 1, "sample": sample})
    return collate(rows, vlm.pad_id)


def counted(vlm: Any, batch: dict[str, Any]) -> int:
    """Products of matrices, forward and backward: torch does not count its own attention on a CPU."""
    with FlopCounterMode(display=False, custom_mapping=INPLACE) as counter:
        vlm(batch)["logits"].sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "backbone"),  # torch's counter takes no experts of SiLU, whose gradient is taken inside of a backward
    [*((PlainVLM, name) for name in BACKBONES), (TwinExpertVLM, "tiny"), (TwinExpertVLM, "moe_llava")],
)
def test_tokens_and_logits(kind: type, backbone: str) -> None:
    """A frozen base costs two thirds of one that trains; of experts those count that answer a token."""
    vlm = kind(BACKBONES[backbone]()).train()
    vlm.backbone.embedding.weight.requires_grad_(True)  # so that gradients go down to the first layer
    batch = text_batch(vlm)
    expected = step_flops(vlm).of_step(tokens=80, pairs=0, answers=14)
    assert counted(vlm, batch) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_count_as_the_matrix_that_they_stand_for(kind: str) -> None:
    def made(held: str | None) -> Any:
        backbone = TinyBackbone(pretrained=None, hidden_size=64, intermediate_size=64, num_layers=2, vision_layers=1)
        return TwinExpertVLM(backbone, expert_rank=4, quantization=held)

    assert step_flops(made(kind)) == step_flops(made(None))


def test_pairs_by_hand() -> None:
    heads, size, layers = 2, 16, 2
    assert step_flops(PlainVLM(BACKBONES["tiny"]())).pair == 12 * heads * size * layers  # QK and PV, 2; once, twice


@pytest.mark.parametrize("rows", [(), ["codec"]])
def test_a_frozen_head_is_frozen_where_rows_of_tokens_train(rows: list[str]) -> None:
    """Its matrix is [V, H]: forward and the gradient of its input."""
    vlm = LoRAVLM(BACKBONES["tiny"](), rank=4, train_token_rows=rows)
    vocabulary, size = vlm.backbone.embedding.weight.shape
    assert step_flops(vlm).logits == 2 * 2 * vocabulary * size
