"""Prompts behind their pictures in one row: log-probabilities and answers as of rows of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_packed_questions import BACKBONES, questions
from ts_lightning.data.collate import collate
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.generate import decode, generate_answers, prefill

TOKENS = 12
GROUPS = [questions(2, 5), questions(1, 1, seed=7), questions(1, 3, "understanding", 9)]


def batches(vlm: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [[vlm.encode(one, for_generation=True) for one in group] for group in GROUPS]
    packed = collate([row for group in rows for row in vlm.encoder.pack(group)], vlm.pad_id, "left")
    return packed, collate([row for group in rows for row in group], vlm.pad_id, "left")


def log_probs(vlm: Any, batch: dict[str, Any]) -> Tensor:
    """Of all tokens, before each of `TOKENS` greedy steps."""
    seen = []

    def likeliest(logits_RV: Tensor, rows_R: Tensor) -> Tensor:
        seen.append(logits_RV.log_softmax(-1))
        return logits_RV.argmax(-1)

    list(decode(prefill(vlm, batch), likeliest, set(), TOKENS))
    return torch.stack(seen)


@torch.no_grad()
def check(vlm: Any) -> None:
    packed, apart = batches(vlm.eval())
    assert len(packed["input_ids"]) == 3 < len(apart["input_ids"]) == 9
    assert [one.id for one in packed["samples"]] == [one.id for one in apart["samples"]]
    if "pixel_values" in packed:
        assert 2 * len(packed["pixel_values"]) < len(apart["pixel_values"])
    torch.testing.assert_close(log_probs(vlm, packed), log_probs(vlm, apart), atol=1e-6, rtol=1e-6)
    for constrain in (False, True):
        answers = [generate_answers(vlm, batch, TOKENS, constrain=constrain) for batch in (packed, apart)]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_equal_to_rows_of_their_own(backbone: str) -> None:
    torch.manual_seed(0)
    check(TwinExpertVLM(BACKBONES[backbone](), every=1, num_experts=2))


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_a_folder_of_any_family(family: str, tmp_path: Path) -> None:
    check(TwinExpertVLM(HFBackbone(str(make_folder(family, tmp_path))), every=1, num_experts=2))


def test_rows_padded_on_the_right_are_refused() -> None:
    vlm = TwinExpertVLM(BACKBONES["tiny"](), every=1, num_experts=2)
    rows = [vlm.encode(one, for_generation=True) for one in GROUPS[0]]
    with pytest.raises(ValueError, match="generate: seen a row padded on the right"):
        prefill(vlm, collate(vlm.encoder.pack(rows), vlm.pad_id))
