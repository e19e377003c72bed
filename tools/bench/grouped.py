"""Attention of decoding steps of grouped-query models: keys and values where they are, against copied ones.

One token of each of eight answers behind each prompt, at the heads of Qwen2-VL-2B and 7B, by CPU time. The peer is
transformers' SDPA function, which repeats keys and values for every query head of a group.
"""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tools.bench.harness import interleave, ratio, relative_error, report, spread
from ts_lightning.models.attention import attend
from ts_lightning.models.packing import branch_mask

HEADS = {"Qwen2-VL-2B": (12, 2), "Qwen2-VL-7B": (28, 4)}  # of queries, and of keys
GROUP, SIZE, CALLS = 8, 128, 5
PROMPTS = {"1x660": (1, 660), "4x660": (4, 660), "4x1800": (4, 1800)}  # rows, keys


def step(heads: int, groups: int, rows: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and mask of a decoding step; the keys stand in a cache with room behind them."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, heads, GROUP, SIZE, generator=generator).to(dtype)
    cache = torch.randn(2, rows, groups, keys + 64, SIZE, generator=generator).to(dtype)[..., :keys, :]
    own_BG = torch.arange(1, GROUP + 1).expand(rows, -1)
    branch_BK = torch.zeros(rows, keys, dtype=torch.long)
    branch_BK[:, -GROUP:] = own_BG
    return [query, *cache, branch_mask(own_BG, branch_BK)]


def main(rounds: int, dtype: str = "float32") -> int:
    """Print ours / theirs of each shape and its spread; status 1 where the outputs differ."""
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    figures: dict[str, Any] = {"ratios": {}, "spread": {}, "max_relative_error": 0.0}
    cases = {(name, shape): (*HEADS[name], *PROMPTS[shape]) for name in HEADS for shape in PROMPTS}
    for case, sizes in cases.items():
        seconds, error = timed(step(*sizes, getattr(torch, dtype)), rounds, tolerance)
        figures["max_relative_error"] = max(error, figures["max_relative_error"])
        if not seconds:
            return report("grouped", False, **figures)
        for figure, of in (("ratios", ratio), ("spread", spread)):
            figures[figure]["/".join(case)] = of(seconds, "ours", "copied")
    return report("grouped", True, **figures, dtype=dtype, threads=torch.get_num_threads())


@torch.no_grad()
def timed(given: list[Tensor], rounds: int, tolerance: float) -> tuple[dict[str, list[float]], float]:
    """CPU seconds of both, {} where they differ by more than the tolerance, and by how much they do."""
    module: Any = nn.Module()
    module.num_key_value_groups, module.is_causal = given[0].shape[1] // given[1].shape[1], True

    def calls(function: Any) -> Tensor:
        return [function(module, *given, scaling=SIZE**-0.5)[0] for _ in range(CALLS)][-1]

    error = relative_error(calls(attend), calls(sdpa_attention_forward))
    pair = {"ours": partial(calls, attend), "copied": partial(calls, sdpa_attention_forward)}
    return interleave(pair, rounds, time.process_time) if error <= tolerance else {}, error
