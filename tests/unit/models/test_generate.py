"""The growing cache holds what transformers' own does, without copying it at every step."""

import torch
from transformers.cache_utils import Cache, DynamicCache

from ts_lightning.models.cache import ROOM, GrowingLayer


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
