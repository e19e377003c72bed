"""A run that learns nothing stops with a line; one that learns does not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.zero2 import ZeRO2Strategy
from ts_lightning.training.silence import STEPS, StopWithoutGradient


class Elsewhere(ZeRO2Strategy):
    """A strategy that holds the gradients itself, as DeepSpeed does."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []

    def gradients(self) -> list[torch.Tensor]:
        return self.held


def run(gradients: list[float], world_size: int = 1, zero: Elsewhere | None = None) -> None:
    vlm = TwinExpertVLM(TinyBackbone(pretrained=None, hidden_size=32, num_layers=2, vision_layers=1, num_heads=2))
    callback, trainer = StopWithoutGradient(), SimpleNamespace(world_size=world_size, strategy=zero)
    module: Any = SimpleNamespace(vlm=vlm, parameters=vlm.parameters)
    batch = {"micro_batches": [{"task": torch.tensor([0, 0, 1])}, {"task": torch.tensor([0])}]}
    for step, value in enumerate(gradients):
        callback.on_train_batch_start(trainer, module, batch, step)  # type: ignore[arg-type]
        if zero is not None:
            zero.held = [torch.full((3,), value)]
        for parameter in vlm.parameters() if zero is None else ():
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


def test_gradients_that_deepspeed_holds_count() -> None:
    run([1e-9] + [0.0] * STEPS, zero=Elsewhere())
    with pytest.raises(ValueError, match="no gradient above 0"):
        run([0.0] * STEPS, zero=Elsewhere())
