"""The training loop of the tiny base over packed lessons: constant rate, a linear fall at the end, checkpoints."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tools.experiments.tiny_base.lessons import lesson_loss
from tools.experiments.tiny_base.vision import PatchHeads
from ts_lightning.models.backbones.tiny import TinyBackbone

BALANCE = 0.01


VISION_FACTOR = 0.2  # the pre-trained vision tower moves more slowly than the rest


def make_optimizer(backbone: TinyBackbone, heads: PatchHeads, lr: float) -> torch.optim.Optimizer:
    """AdamW without decay on vectors; every group's `factor` multiplies the schedule's rate."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        factor = VISION_FACTOR if "vision_tower" in name else 1.0
        groups.setdefault((factor, 0.03 if parameter.ndim > 1 else 0.0), []).append(parameter)
    groups[VISION_FACTOR, 0.01] = list(heads.parameters())
    made = [{"params": p, "weight_decay": decay, "factor": factor} for (factor, decay), p in groups.items()]
    return torch.optim.AdamW(made, lr=lr, betas=(0.9, 0.98))


def restore(backbone: TinyBackbone, heads: PatchHeads, optimizer: torch.optim.Optimizer, path: Path) -> int | None:
    """Load a checkpoint where there is one; returns the steps done."""
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True)
    backbone.model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(
    backbone: TinyBackbone, heads: PatchHeads, optimizer: torch.optim.Optimizer | None, step: int, out: Path
) -> None:
    """Write `out/last.pt`, to go on from, and the base itself to `out/base`."""
    state = {
        "model": backbone.model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, out / "tmp.pt")
    (out / "tmp.pt").replace(out / "last.pt")
    backbone.save(out / "base")


def train_lessons(
    backbone: TinyBackbone,
    heads: PatchHeads,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict[str, Tensor]],
    out: Path,
    first: int,
    steps: int,
    decay: int,
    lr: float,
    save_every: int = 250,
) -> None:
    """Train from step `first` to `steps`; the rate falls to zero over the last `decay` steps."""
    began = time.monotonic()
    for step, batch in enumerate(batches, start=first + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["factor"] * min(1.0, step / 200, (steps - step + 1) / decay)
        loss, correct = lesson_loss(backbone, heads, batch, BALANCE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            seconds = round(time.monotonic() - began)
            line = {
                "step": step,
                "loss": round(loss.item(), 4),
                "correct": round(correct.item(), 4),
                "seconds": seconds,
            }
            print(json.dumps(line), flush=True)
        if step % save_every == 0 or step == steps:
            save(backbone, heads, optimizer, step, out)
