"""What eight questions about one scene are worth in a step, against questions about as many scenes.

    python -m tools.bench.gradient_noise [--steps 200] [--batches 24]

The variance of a step's gradient over batches of as many questions from the toy world, of few scenes or of many, after
some steps of training. The last line is one JSON object.
"""

import argparse
from collections.abc import Iterator
from itertools import groupby, islice
from random import Random
from typing import Any

import torch
from torch import Tensor

from tools.bench.harness import report
from ts_lightning.data.collate import collate, join
from ts_lightning.losses import Stepwise
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.shards import QUESTIONS, grounding_samples

SIZE = 24  # questions of a step
LOSS = Stepwise("step_mean", 0.01)


def scenes() -> Iterator[list[Any]]:
    """The questions of one scene after the other."""
    samples = grounding_samples("train", 10**9, per_scene=QUESTIONS)
    return (list(group) for _, group in groupby(samples, lambda sample: sample.key.partition("#")[0]))


def batches(found: Iterator[list[Any]], few: bool, random: Random) -> Iterator[list[list[Any]]]:
    """Groups of questions about a scene each, `SIZE` questions together: all of a scene's, or one."""
    while True:
        groups: list[list[Any]] = []
        while (room := SIZE - sum(map(len, groups))) > 0:
            group = next(found)
            groups.append(group[:room] if few else [random.choice(group)])
        yield groups


def backward(vlm: TwinExpertVLM, groups: list[list[Any]]) -> None:
    """The gradient of the mean loss of a step's questions."""
    vlm.zero_grad()
    rows = [row for group in groups for row in vlm.encoder.pack([vlm.encode(sample) for sample in group])]
    batch = collate(join(rows), vlm.pad_id)
    LOSS(vlm(batch), batch)["loss"].mean().backward()


def variance(vlm: TwinExpertVLM, steps: Iterator[list[list[Any]]], count: int) -> tuple[float, float]:
    """The variance of a step's gradient, and the squared length of its mean (without the variance's part)."""
    total: Tensor | float = 0.0
    squares = 0.0
    for groups in islice(steps, count):
        backward(vlm, groups)
        gradient = torch.cat([p.grad.flatten() for p in vlm.parameters() if p.grad is not None]).double()
        total, squares = total + gradient, squares + float(gradient @ gradient)
    assert isinstance(total, Tensor)
    spread = (squares - float(total @ total) / count) / (count - 1)
    return spread, float(total @ total) / count**2 - spread / count


def main(steps: int, count: int) -> int:
    """Train on questions of few scenes, then print both variances."""
    torch.manual_seed(0)
    vlm = TwinExpertVLM(TinyBackbone(), num_experts=2, every=1, train_token_rows=["codec"]).train()
    found, random = scenes(), Random(0)
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.98))
    for groups in islice(batches(found, True, random), steps):
        backward(vlm, groups)
        torch.nn.utils.clip_grad_norm_(vlm.parameters(), 1.0)
        optimizer.step()
    (few, signal), (many, _) = (variance(vlm, batches(found, which, random), count) for which in (True, False))
    figures = {"variance": {"few_scenes": few, "many_scenes": many}, "squared_mean": signal, "questions": SIZE}
    return report("gradient_noise", True, ratio=round(few / many, 3), **figures, steps=steps, batches=count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batches", type=int, default=24)
    given = parser.parse_args()
    raise SystemExit(main(given.steps, given.batches))
