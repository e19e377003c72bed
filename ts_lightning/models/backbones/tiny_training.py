"""The training loop of the tiny base over packed lessons: constant rate, a linear fall at the end, checkpoints."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.backbones.tiny_lessons import lesson_loss

BALANCE = 0.01


def make_optimizer(backbone: TinyBackbone, lr: float) -> torch.optim.Optimizer:
    """AdamW without decay on vectors."""
    matrices = [p for p in backbone.parameters() if p.ndim > 1]
    vectors = [p for p in backbone.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def restore(backbone: TinyBackbone, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Load a checkpoint where there is one; returns the steps done."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    backbone.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def train_lessons(
    backbone: TinyBackbone,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict[str, Tensor]],
    out: Path,
    first: int,
    steps: int,
    decay: int,
    save_every: int,
) -> None:
    """Train from step `first` to `steps`; the rate falls to zero over the last `decay` steps.

    Every `save_every` steps writes `out/last.pt` (to go on from) and the base itself to `out/base`.
    """
    lr, began = optimizer.param_groups[0]["initial_lr"], time.monotonic()
    for step, batch in enumerate(batches, start=first + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 200, (steps - step + 1) / decay)
        loss, correct = lesson_loss(backbone, batch, BALANCE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            seconds = round(time.monotonic() - began)
            line = {"step": step, "loss": round(loss.item(), 4), "correct": round(correct.item(), 4), "seconds": seconds}
            print(json.dumps(line), flush=True)
        if step % save_every == 0 or step == steps:
            state = {"model": backbone.model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, out / "tmp.pt")
            (out / "tmp.pt").replace(out / "last.pt")
            backbone.save(out / "base")
