"""What `sft` and `packing` share at a paper's full geometry: the model, its questions, the check, and the device's use.

The base is bf16 and frozen, what trains is fp32 under bf16 autocast, and blocks are recomputed, as in training.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tools.bench.full_size import on, record
from tools.bench.geometry import backbone
from tools.bench.harness import interleave, ratio, report, spread
from ts_lightning.data.collate import collate, join, seen_pairs
from ts_lightning.data.sample import Turn
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.flops import step_flops

PEAK = 990e12  # an H200's data sheet: dense products in bf16, a second
ASKED, ANSWERED = 60, 24  # words of a question and of its answer
TOLERANCE = {"loss": 0.02, "gradients": 0.2}  # in bf16 a rounded router score sends some tokens to another expert

Batch = dict[str, Any]
Loss = Callable[[Any, Batch], Tensor]


def make_twin(model: str, device: str) -> TwinExpertVLM:
    """Two experts in every second layer, random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        vlm = TwinExpertVLM(backbone(model), num_experts=2, activation_checkpointing=True)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return vlm.train()


def rows_about(vlm: Any, picture: int, questions: int) -> list[Batch]:
    """Encoded questions about one picture of noise, 640 x 480."""
    asked = record(picture)
    rows = []
    for number in range(questions):
        name = f"{picture}-{number}"
        turns = [
            Turn("user", "<image>\n" + f"Is it {name}? " + "where " * ASKED),
            Turn("assistant", "there " * ANSWERED),
        ]
        rows.append(vlm.encode(replace(asked, id=name, key=name, turns=turns)))
    return rows


def batch_of(vlm: Any, rows: Sequence[Batch], device: str, joined: bool = False) -> Batch:
    """The rows as one micro-batch on the device, or as one row, with what a step has to compute for them."""
    counts = {
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "pairs": sum(map(seen_pairs, rows)),
        "answers": sum(int((torch.as_tensor(ids) >= 0).sum()) for row in rows for ids in _lists(row["step_ids"])),
    }
    return {**on(device, collate(join(rows) if joined else list(rows), vlm.pad_id)), "counts": counts}


def _lists(step_ids: Any) -> Sequence[Any]:
    return step_ids if isinstance(step_ids, list) else [step_ids]


def step_of(vlm: Any, optimizer: torch.optim.Optimizer, loss: Loss, batches: Sequence[Batch], device: str) -> Any:
    """Forward and backward of all micro-batches, and AdamW."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with torch.autocast(device, torch.bfloat16):
                value = loss(vlm, batch)
            value.backward()
        optimizer.step()

    return step


def gradients(vlm: Any, loss: Loss, batches: Sequence[Batch], device: str) -> tuple[float, list[Tensor]]:
    """The loss of all micro-batches, and the gradients in the host's memory: the device holds no second set."""
    vlm.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        with torch.autocast(device, torch.bfloat16):
            value = loss(vlm, batch)
        value.backward()
        total += value.item()
    found = [p.grad.cpu() for p in vlm.parameters() if p.grad is not None]
    vlm.zero_grad(set_to_none=True)
    return total, found


def errors(ours: tuple[float, list[Tensor]], theirs: tuple[float, list[Tensor]]) -> dict[str, float]:
    """Relative errors of the loss and of all gradients together."""
    apart = sum((a.double() - b).square().sum().item() for a, b in zip(ours[1], theirs[1], strict=True))
    whole = sum(b.double().square().sum().item() for b in theirs[1])
    return {"loss": abs(ours[0] - theirs[0]) / abs(theirs[0]), "gradients": (apart / whole) ** 0.5}


def compare(
    name: str,
    model: str,
    device: str,
    vlm: Any,
    variants: Mapping[str, tuple[Loss, Sequence[Batch]]],
    checked: Mapping[str, tuple[Loss, Sequence[Batch]]],
    rounds: int,
    around: Callable[[str, Any], Any] = lambda name, step: step,
) -> int:
    """Hold the first of `checked` against the others, then time steps; the ratios are the first variant / the other.

    `around` may change the step of a variant. Prints the operations a second that the model needs, and their share of
    `PEAK`.
    """
    ours, *others = (
        around(variant, lambda pair=pair: gradients(vlm, *pair, device))() for variant, pair in checked.items()
    )
    wrong = [errors(ours, other) for other in others]
    figures: dict[str, Any] = {"model": model, "relative_errors": wrong, "device": _name(device)}
    if not all(error[part] <= limit for error in wrong for part, limit in TOLERANCE.items()):
        return report(name, False, ratios={}, **figures)
    del ours, others
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-6)
    steps = {variant: around(variant, step_of(vlm, optimizer, *pair, device)) for variant, pair in variants.items()}
    seconds = interleave(steps, rounds, time.perf_counter if device == "cuda" else time.process_time)
    first, *peers = variants
    needed = {variant: _operations(vlm, batches) for variant, (_, batches) in variants.items()}
    speed = {variant: needed[variant] / statistics.median(seconds[variant]) for variant in variants}
    return report(
        name,
        True,
        ratios={peer: ratio(seconds, first, peer) for peer in peers},
        spread={peer: spread(seconds, first, peer) for peer in peers},
        step_s={variant: round(statistics.median(each), 3) for variant, each in seconds.items()},
        tflop_per_second={variant: round(each / 1e12, 2) for variant, each in speed.items()},
        mfu={variant: round(each / PEAK, 4) for variant, each in speed.items()} if device == "cuda" else None,
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if device == "cuda" else None,
        **figures,
    )


def skipped(name: str, model: str) -> int:
    """What is said where there is no CUDA device."""
    return report(name, True, model=model, skipped="seen no CUDA device, expected one: nothing was run")


def _operations(vlm: Any, batches: Sequence[Batch]) -> float:
    counts = [batch["counts"] for batch in batches]
    return step_flops(vlm).of_step(*(sum(count[part] for count in counts) for part in ("tokens", "pairs", "answers")))


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
