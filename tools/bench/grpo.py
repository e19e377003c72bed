"""One GRPO step with the prompt read once a group, against the same loop with repeated prompts and against TRL.

Text alone, the tiny decoder at H = 768 with 3 layers and plain MLPs, the MLPs of layers 0 and 2 trainable, KL 0.04.
Log-probabilities and gradients of both forms are compared first. All of it runs on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch

from tools.bench import grpo_memory
from tools.bench.grpo_step import COMPLETION, PROMPT, StepCase
from tools.bench.grpo_trl import trl_steps
from tools.bench.harness import interleave, ratio, report, saved_bytes

BARS = {  # ratios that are wanted; timing alone fails no run
    "update/repeated": 0.25,
    "rollout_24/repeated": 0.35,
    "rollout_60/repeated": 0.50,
    "whole_100_100/repeated": 1.0,
    "whole/trl": 0.285,  # 3.5 times faster
}


def met(ratios: dict[str, float]) -> dict[str, bool]:
    """Whether each bar whose ratio was measured is met."""
    return {f"{name} <= {bar}": ratios[name] <= bar for name, bar in BARS.items() if name in ratios}


def main(rounds: int = 3) -> int:
    """Compare both forms, then time rollout, update and whole steps; the ratios are ours / the other."""
    text, pictures, even = StepCase(PROMPT, COMPLETION), StepCase(PROMPT, COMPLETION, pictures=4), StepCase(100, 100)
    errors = [error for case in (text, pictures, even) for error in case.errors().values()]
    error = max(errors)
    if not all(seen <= 1e-4 for seen in errors):
        return report("grpo", False, ratios={}, max_relative_error=error)
    kept = [
        saved_bytes(lambda shared=shared: text.score(shared, text.tokens_NS), text.vlm.parameters())  # type: ignore[misc]
        for shared in (True, False)
    ]
    peak_ratio, peak_mib = grpo_memory.compare()
    ratios: dict[str, float] = {}
    pairs: dict[str, Callable[[bool], Any]] = {
        "update": text.update,
        "rollout_24": lambda shared: text.roll_out(shared, 24),
        "rollout_60": lambda shared: text.roll_out(shared, 60),
        "whole_100_100": even.whole,
        "whole": text.whole,
        "whole_4_pictures": pictures.whole,
    }
    for name, run in pairs.items():
        variants = {"ours": lambda run=run: run(True), "repeated": lambda run=run: run(False)}  # type: ignore[misc]
        ratios[f"{name}/repeated"] = ratio(interleave(variants, rounds), "ours", "repeated")
    peer = trl_steps(rounds, {"ours": lambda: text.whole(True)})
    trained = sum(p.numel() for p in text.trainable)
    if peer:
        ratios["whole/trl"] = ratio(peer, "ours", "trl")
        if peer["trained_parameters"] != [float(trained)]:
            return report("grpo", False, ratios=ratios, trained=[trained, *peer["trained_parameters"]])
    return report(
        "grpo",
        True,
        ratios=ratios,
        bars=met(ratios),
        saved_bytes_ratio=round(kept[0] / kept[1], 3),
        peak_memory_ratio=peak_ratio,
        peak_memory_mib=peak_mib,
        reference_parameters={"ours": trained, "trl": sum(p.numel() for p in text.vlm.backbone.decoder.parameters())},
        max_relative_error=error,
        trl="measured" if peer else "not installed (pip install trl datasets)",
        cuda="not measured: CPU only",
        threads=torch.get_num_threads(),
    )
