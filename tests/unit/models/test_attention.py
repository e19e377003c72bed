"""Block masks of FlexAttention give what dense masks give, forward and backward."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.unit.models.hf_families import make_folder
from tests.unit.models.test_packed_questions import BACKBONES, LOSSES, image_id, questions, results
from ts_lightning.data.collate import collate, join
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.attention import attend, block_masks, use_attention
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.packing import branch_mask, pack_questions

BRANCHES = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, -1, -1]])


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention in its plain form on a CPU, gradients included, which torch has but keeps closed."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")


class Heads(nn.Module):
    """What transformers' attention functions ask a module for."""

    num_key_value_groups = 2
    is_causal = True


def test_the_kernel_equals_sdpa_over_grouped_heads(plain_flex: None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16))
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    dense = branch_mask(BRANCHES)
    found: list[tuple[Tensor, ...]] = []
    for mask in (dense, block_masks(dense)):
        out, _ = attend(Heads(), *inputs, attention_mask=mask, scaling=0.3)
        found.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)))
    for seen, expected in zip(*found, strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


def packed_results(vlm: Any, loss: str, choice: str) -> Any:
    vlm.attention = use_attention(vlm.backbone.decoder, choice)
    rows = pack_questions([vlm.encode(sample) for sample in questions(1, 4)], image_id(vlm))
    rows += [vlm.encode(sample) for sample in [*questions(1, 1, seed=4), *questions(1, 1, "understanding", 9)]]
    return results(
        vlm, LOSSES[loss], collate(join(rows), vlm.pad_id) if vlm.encoder.joins else collate(rows, vlm.pad_id)
    )


def check_equal(vlm: Any, loss: str) -> None:
    """Loss parts and gradients to 1e-5, the latter held against the largest where they cancel."""
    (parts, grads), (expected_parts, expected) = (packed_results(vlm, loss, choice) for choice in ("flex", "sdpa"))
    for name, values in expected_parts.items():
        assert parts[name] == pytest.approx(values, rel=1e-5, abs=1e-6)
    scale = torch.stack([g.norm() for g in expected.values()]).max()
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-5 * max(grad.norm(), 0.01 * scale), name


@pytest.mark.parametrize(("backbone", "loss"), [("tiny", "step_mean"), ("qwen2_vl", "isolated")])
def test_packed_rows_under_block_masks(backbone: str, loss: str, plain_flex: None) -> None:
    check_equal(TwinExpertVLM(BACKBONES[backbone](), every=1).train(), loss)


def test_windows_and_pictures_seen_both_ways(tmp_path: Path, plain_flex: None) -> None:
    check_equal(PlainVLM(HFBackbone(str(make_folder("gemma3", tmp_path)))).train(), "step_mean")


def test_rows_without_branches_need_no_mask() -> None:
    vlm = PlainVLM(BACKBONES["tiny"](), attention="flash")
    batch = collate([vlm.encode(sample) for sample in questions(1, 3)], vlm.pad_id)
    seen = vlm(batch)["logits"]
    vlm.attention = use_attention(vlm.backbone.decoder, "auto")
    torch.testing.assert_close(seen, vlm(batch)["logits"], rtol=1e-6, atol=1e-6)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="attention: seen 'flex' for training on a CPU, expected 'auto' or 'sdpa'"):
        packed_results(PlainVLM(BACKBONES["tiny"]()), "step_mean", "flex")
    with pytest.raises(ValueError, match="attention: seen 'fast', expected one of auto, sdpa, flex, flash"):
        PlainVLM(BACKBONES["tiny"](), attention="fast")


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes anew: views share what they look at."""

    elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if torch.is_tensor(x)}
        for one in made if isinstance(made, tuple) else (made,):
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, one.numel())
        return made


def answers_of(group: int, keys: int = 40) -> Tensor:
    """The mask of one token of each of `group` answers behind two prompts, one of them padded on the left."""
    own_BG = torch.arange(1, group + 1).expand(2, -1)
    branch_BK = torch.zeros(2, keys, dtype=torch.long)
    branch_BK[1, :5] = -1
    branch_BK[:, keys - group :] = own_BG
    return branch_mask(own_BG, branch_BK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("group", [1, 3])
def test_grouped_keys_are_read_where_they_are_in_decoding(group: int, causal: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 6, group, 8), (2, 2, 40, 8), (2, 2, 40, 8))
    )
    heads: Any = Heads()
    heads.num_key_value_groups, heads.is_causal = 3, causal
    masks: list[Tensor | None] = [answers_of(group), *([None] if group == 1 else [])]
    for mask in masks:
        with torch.no_grad(), Largest() as largest:
            seen, _ = attend(heads, query, key, value, mask, scaling=0.3)
        keys, values = (x.double().repeat_interleave(3, 1) for x in (key, value))
        scores = 0.3 * query.double() @ keys.mT
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        expected = (scores.softmax(-1) @ values).transpose(1, 2)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(seen.double(), expected, rtol=tolerance, atol=tolerance)
        assert largest.elements < key.numel()
        dense, _ = sdpa_attention_forward(heads, query, key, value, mask, scaling=0.3)
        torch.testing.assert_close(seen, dense, rtol=tolerance, atol=tolerance)


def test_what_is_not_folded_is_as_it_was() -> None:
    query, key = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    dense = branch_mask(BRANCHES[:1])
    expected, _ = sdpa_attention_forward(Heads(), query, key, key, dense)
    assert torch.equal(attend(Heads(), query, key, key, dense)[0], expected)
    with pytest.raises(ValueError, match="softcap"):
        attend(Heads(), query[:, :, :1], key, key, None, softcap=3.0)
