"""Rows padded on the right need no mask: what counts comes out as with one (whose kernel may round otherwise)."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.unit.models.test_backbones import MAKERS, SAMPLES
from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM, TwinExpertVLM, vlm
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.packing import count_on, pad_left, right_padded

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vision_layers": 1, "num_heads": 2}
ALL = {"tiny": lambda: TinyBackbone(pretrained=None, **SIZES), **MAKERS}


def rows(of: Any) -> dict[str, Any]:
    return collate([of.encode(sample) for sample in SAMPLES], of.pad_id)


def masks(monkeypatch: pytest.MonkeyPatch, positions: int) -> list[Any]:
    """What every attention over so many positions is given as its mask."""
    seen: list[Any] = []
    attend = F.scaled_dot_product_attention

    def spy(query: Any, *args: Any, **kwargs: Any) -> Any:
        if query.shape[-2] == positions:
            seen.append(kwargs.get("attn_mask"))
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_with_a_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = TwinExpertVLM(ALL[name](), every=1, num_experts=2).train()
    batch = rows(of)
    assert not batch["valid"].all()
    with monkeypatch.context() as patch, torch.no_grad():
        seen = masks(patch, batch["valid"].shape[1])
        without = of(batch)
    assert seen
    assert all(mask is None for mask in seen)
    monkeypatch.setattr(vlm, "right_padded", lambda valid_BT: False)
    with torch.no_grad():
        masked = of(batch)
    torch.testing.assert_close(without["logits"], masked["logits"], rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(without["router_probs"], masked["router_probs"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert len(ours) <= batch["valid"].sum()


def test_left_padding_keeps_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    of = PlainVLM(ALL["tiny"]()).eval()
    batch = rows(of)
    with torch.no_grad():
        right, seen = of(batch)["logits"], masks(monkeypatch, batch["valid"].shape[1])
        left = of(pad_left(batch))["logits"]
    assert seen
    assert all(mask is not None for mask in seen)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_what_is_right_padded() -> None:
    assert right_padded(torch.tensor([[True, True], [True, False], [False, False]]))
    assert not right_padded(torch.tensor([[True, True], [False, True]]))


def test_positions_count_on_through_pads() -> None:
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert count_on(torch.tensor([[0, 1, 2], [0, 0, 0]]), valid).tolist() == [[0, 1, 2], [0, 1, 2]]
    axes = torch.tensor([[[0, 0, 1], [4, 0, 0]], [[0, 2, 3], [5, 0, 0]]])
    assert count_on(axes, valid).tolist() == [[[0, 0, 1], [4, 5, 6]], [[0, 2, 3], [5, 6, 7]]]
