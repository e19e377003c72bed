"""A run that learns nothing stops with a line; one that learns does not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.training.silence import STEPS, StopWithoutGradient


def run(gradients: list[float], world_size: int = 1) -> None:
    vlm = TwinExpertVLM(TinyBackbone(pretrained=None, hidden_size=32, num_layers=2, vision_layers=1, num_heads=2))
    callback, trainer = StopWithoutGradient(), SimpleNamespace(world_size=world_size)
    module: Any = SimpleNamespace(vlm=vlm, parameters=vlm.parameters)
    batch = {"micro_batches": [{"task": torch.tensor([0, 0, 1])}, {"task": torch.tensor([0])}]}
    for step, value in enumerate(gradients):
        callback.on_train_batch_start(trainer, module, batch, step)  # type: ignore[arg-type]
        for parameter in vlm.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, value)
        callback.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]


def test_no_gradient_stops_and_says_which_rows_there_were() -> None:
    with pytest.raises(ValueError, match=r"in the first 10 steps \(rows: 30 understanding, 10 grounding\)"):
        run([0.0] * STEPS)


def test_one_gradient_is_enough() -> None:
    run([0.0] * (STEPS - 1) + [1e-9] + [0.0] * STEPS)
    run([0.0] * (STEPS - 1))
    run([0.0] * STEPS, world_size=2)  # ranks hold parts
