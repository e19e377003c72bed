"""One GRPO step with the prompt read once a group, against the same loop with repeated prompts and against TRL.

The tiny decoder at H = 768 with 3 layers and plain MLPs, the MLPs of layers 0 and 2 trainable, KL 0.04, on the CPU and
by its time. Parts print their line as they end: `forms` (both forms equal, then timed), `memory`, `rollouts` (eight
prompts), `trl` (whole steps beside `trl.GRPOTrainer`; with 1 and 4 pictures as well) and `operations` of a token.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch

from tools.bench import grpo_memory
from tools.bench.grpo_operations import operations_a_token
from tools.bench.grpo_step import COMPLETION, GROUP, PROMPT, StepCase, make_batch
from tools.bench.grpo_trl import trl_steps
from tools.bench.harness import interleave, ratio, report, saved_bytes, spread
from ts_lightning.models.packing import joined, pad_left
from ts_lightning.rl.sampling import prompts_read, sample_groups

MEAN_LENGTH = 30  # of answers that end by themselves, up to COMPLETION
BARS = {  # what is wanted; timing alone fails no run
    "update/repeated": 0.25,
    "rollout_24/repeated": 0.35,
    "rollout_60/repeated": 0.50,
    "whole_100_100/repeated": 1.0,
    "together/one_by_one": 0.45,
    "whole/trl": 0.16,
    "whole_1_picture/trl": 0.16,
    "whole_4_pictures/trl": 0.16,
    "operations": 600,
}


def met(figures: Mapping[str, float]) -> dict[str, bool]:
    """Whether each bar whose figure was measured is met."""
    return {f"{name} <= {bar}": figures[name] <= bar for name, bar in BARS.items() if name in figures}


def timed(name: str, pair: Mapping[str, Callable[[], Any]], rounds: int, **more: Any) -> int:
    """Report ours / the other of two forms, and the spread over the rounds."""
    ours, peer = pair
    seconds = interleave(pair, rounds, time.process_time)
    return _report(f"{name}/{peer}" if ours == "ours" else f"{ours}/{peer}", seconds, ours, peer, **more)


def forms(rounds: int) -> int:
    """Equal to the repeated prompt, then rollout, update and whole steps of both."""
    text, pictures, even = StepCase(PROMPT, COMPLETION), StepCase(PROMPT, COMPLETION, pictures=1), StepCase(100, 100)
    errors = [error for case in (text, pictures, even) for error in case.errors().values()]
    if not all(seen <= 1e-4 for seen in errors):
        return report("grpo", False, ratios={}, max_relative_error=max(errors))
    kept = [
        saved_bytes(lambda shared=shared: text.score(shared, text.tokens_NS.tolist()), text.vlm.parameters())  # type: ignore[misc]
        for shared in (True, False)
    ]
    report("grpo", True, saved_bytes_ratio=round(kept[0] / kept[1], 3), max_relative_error=max(errors))
    pairs: dict[str, Callable[[bool], Any]] = {
        "update": text.update,
        "rollout_24": lambda shared: text.roll_out(shared, 24),
        "rollout_60": lambda shared: text.roll_out(shared, 60),
        "whole_100_100": even.whole,
        "whole": text.whole,
        "whole_1_picture": pictures.whole,
    }
    for name, run in pairs.items():
        timed(name, {"ours": lambda run=run: run(True), "repeated": lambda run=run: run(False)}, rounds)  # type: ignore[misc]
    return 0


def memory(rounds: int) -> int:
    """Peak memory of a step against one that keeps a second model."""
    peak_ratio, peak_mib = grpo_memory.compare()
    return report("grpo", True, peak_memory_ratio=peak_ratio, peak_memory_mib=peak_mib)


def rollouts(rounds: int, prompts: int = 8) -> int:
    """Rollouts of several prompts decoded together, or one prompt after the other; the same completions."""
    case = StepCase(PROMPT, COMPLETION, mean_length=MEAN_LENGTH)
    batches = [make_batch(case.vlm, PROMPT - 7 * i, name=str(i)) for i in range(prompts)]

    def answers(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
        drawn = [sample_groups(case.vlm, group, GROUP, COMPLETION, stop_after=None) for group in groups]
        return [tokens for sampled in drawn for tokens in sampled.tokens]

    @torch.no_grad()
    def read() -> None:
        for batch in batches:
            prompts_read(case.vlm, pad_left(batch), GROUP)

    together = [joined(batches, case.vlm.pad_id)]
    correct = answers(together) == answers(batches)
    if not correct:
        return report("grpo", False, ratios={}, prompts=prompts)
    pair = {"together": lambda: answers(together), "one_by_one": lambda: answers(batches)}
    layers = [layer for layer in case.vlm.backbone.layers.modules() if isinstance(layer, torch.nn.Linear)]

    @torch.no_grad()
    def products(times: int, rows: int) -> None:
        for _ in range(times):
            for layer in layers:
                layer(torch.ones(rows, layer.in_features))

    parts: dict[str, Callable[[], Any]] = {
        "reading": read,  # either form pays it
        "all_rows": lambda: products(COMPLETION, prompts * GROUP),
        "few_rows": lambda: products(COMPLETION * prompts, GROUP),
    }
    floor = interleave(parts, rounds, time.process_time)
    more = {
        "reading_seconds": round(median(floor["reading"]), 2),
        "products_ratio": ratio(floor, "all_rows", "few_rows"),  # what is left of the layers' products
    }
    return timed("rollouts", pair, rounds, **more)


def trl(rounds: int, pictures: Sequence[int] = (0, 1, 4)) -> int:
    """Whole steps beside TRL's, with completions that end by themselves; of all rounds, as both draw their lengths."""
    rounds *= 4
    for count in pictures:
        prompt = PROMPT if count < 3 else 256 * count + 20
        case = StepCase(prompt, COMPLETION, count, mean_length=MEAN_LENGTH)
        trained = sum(p.numel() for p in case.trainable)
        seconds = trl_steps(rounds, lambda case=case: case.whole(True), trained, count, MEAN_LENGTH)  # type: ignore[misc]
        if not seconds:
            return report("grpo", True, trl="not installed (pip install trl datasets)")
        name = ("whole", "whole_1_picture")[count] if count < 2 else f"whole_{count}_pictures"
        lengths = {"ours": mean(case.mean_lengths[1:]), "trl": mean(seconds["mean_length"])}
        figures = {f"{name}/trl": round(sum(seconds["ours"]) / sum(seconds["trl"]), 3)}
        report(
            "grpo",
            True,
            ratios=figures,
            bars=met(figures),
            of_rounds=spread(seconds, "ours", "trl"),
            cpu_seconds={side: round(mean(seconds[side]), 2) for side in lengths},
            mean_lengths={side: round(length, 1) for side, length in lengths.items()},
            rounds=rounds,
            threads=torch.get_num_threads(),
        )
    return 0


def operations(rounds: int) -> int:
    """Operations of torch a token of the tiny twin, 32 completions."""
    count = operations_a_token()
    return report("grpo", True, operations=count, bars=met({"operations": count}))


PARTS = {part.__name__: part for part in (forms, memory, rollouts, trl, operations)}


def main(rounds: int = 3, parts: Sequence[str] = tuple(PARTS)) -> int:
    """Run the parts; 1 where a check before the timing failed."""
    return max(PARTS[part](rounds) for part in parts)


def _report(name: str, seconds: dict[str, list[float]], ours: str, peer: str, **more: Any) -> int:
    figures = {name: ratio(seconds, ours, peer)}
    median = {side: round(sorted(seconds[side])[len(seconds[side]) // 2], 2) for side in (ours, peer)}
    more |= {"spread": spread(seconds, ours, peer), "cpu_seconds": median, "threads": torch.get_num_threads()}
    return report("grpo", True, ratios=figures, bars=met(figures), **more)
