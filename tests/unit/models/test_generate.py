"""Decoding: the growing cache holds what transformers' own does, and a step takes few calls.

Bitwise: keys and values that are copied.
"""

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.phi.modeling_phi import PhiAttention

from tests.unit.models.test_shared_prefix import prompt, twin
from tools.bench.grpo_operations import operations_a_token
from ts_lightning.data.collate import collate
from ts_lightning.models.cache import ROOM, GrowingLayer
from ts_lightning.models.generate import prefill
from ts_lightning.models.phi_attention import DecodingPhiAttention


def test_equals_the_dynamic_cache_and_stays_in_place() -> None:
    ours, theirs = Cache(layer_class_to_replicate=GrowingLayer), DynamicCache()
    places = []
    for new in (5, 1, 1, 3, ROOM, 1):
        for layer in range(2):
            keys, values = torch.randn(2, 3, new, 4), torch.randn(2, 3, new, 4)
            seen, expected = ours.update(keys, values, layer), theirs.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()
        places.append(seen[0].data_ptr())
    assert len(set(places[:4])) == 1  # written behind the others
    assert len(set(places[3:])) == 2  # one move for ROOM more positions, none for the step behind them


@torch.no_grad()
def test_attention_of_a_step_is_transformers_own() -> None:
    vlm = twin().eval()
    batch = collate([vlm.encode(prompt(0, 1), for_generation=True)], vlm.pad_id)
    found = []
    for kind in (DecodingPhiAttention, PhiAttention):
        for layer in vlm.backbone.layers:
            layer.self_attn.__class__ = kind
        state = prefill(vlm, batch).expand(3)
        for token in (200, 201):
            state.step(torch.tensor([token, token + 1, token + 2]))
        found.append(state.logits_BV)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert len(set(state.kept)) > 0  # the experts, still


def test_a_token_takes_few_operations() -> None:
    assert operations_a_token() <= 600
