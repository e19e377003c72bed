"""Learning rate by optimizer step: linear warm-up, then half a cosine."""

import math

import lightning as L
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Multiply every group's rate by min(1, (s + 1) / warmup_steps), then by a cosine from 1 to `min_factor`.

    s counts optimizer steps from 0. `total_steps=None` means the whole run: `training.base` fills it in from the
    trainer, also after a resume, so a longer `max_steps` stretches the cosine.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 0, total_steps: int | None = None, min_factor: float = 0.0
    ) -> None:
        if warmup_steps < 0 or not 0 <= min_factor <= 1:
            seen = f"{warmup_steps} and {min_factor}"
            raise ValueError(f"warmup_steps, min_factor: seen {seen}, expected >= 0 and a number in [0, 1]")
        self.warmup_steps, self.total_steps, self.min_factor = warmup_steps, total_steps, min_factor
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The multiplier at optimizer step `step` (0-based)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.total_steps is None or self.total_steps <= self.warmup_steps:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.min_factor + (1 - self.min_factor) * 0.5 * (1 + math.cos(math.pi * done))

    def get_lr(self) -> list[float | Tensor]:
        return [base_lr * self.factor(self.last_epoch) for base_lr in self.base_lrs]

    def state_dict(self) -> dict:
        """The position only: shape and length of the schedule come from the configuration."""
        return {
            name: super(WarmupCosine, self).state_dict()[name] for name in ("last_epoch", "_step_count", "_last_lr")
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a position: the groups get this schedule's rates there, not those that the file was saved with."""
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


def planned_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole run.

    From `max_steps` and `max_epochs` times the length of the training loader. `trainer.estimated_stepping_batches` is
    not used: called from configure_optimizers it drops the restored state of the data.
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    datamodule = getattr(trainer, "datamodule", None)
    if trainer.max_epochs and trainer.max_epochs > 0 and datamodule is not None:
        batches = len(datamodule.train_dataloader())
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        limits.append(batches * trainer.max_epochs)
    if not limits:
        seen = f"max_steps {trainer.max_steps}, max_epochs {trainer.max_epochs}"
        raise ValueError(f"trainer: seen {seen}, expected max_steps, or max_epochs with a datamodule")
    return min(limits)
