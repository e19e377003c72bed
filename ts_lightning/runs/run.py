"""Running a module from Python instead of from the command line."""

from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import LightningEnvironment


def quiet_trainer(**options: Any) -> L.Trainer:
    """A trainer on one CPU device that prints and writes nothing; for `validate` and `predict` of a module in hand.

    `options` are `lightning.Trainer`'s and go over these.
    """
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "plugins": [LightningEnvironment()],  # one process, whatever tasks a SLURM job has; none of its handlers
        "use_distributed_sampler": False,  # our loaders share the data themselves
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{**quiet, **options})
