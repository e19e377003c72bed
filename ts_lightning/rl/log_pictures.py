"""Pictures to whatever logger a run has."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def log_pictures(loggers: Iterable[Any], name: str, paths: Sequence[Path], step: int) -> None:
    """Give picture files to each logger that takes pictures: W&B, trackio, TensorBoard, MLflow."""
    for logger in loggers if paths else ():
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(path) for path in paths], step=step)
        elif hasattr(experiment, "add_image"):
            for number, path in enumerate(paths):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                experiment.add_image(f"{name}/{number}", pixels, step, dataformats="HWC")
        elif hasattr(experiment, "log_artifact"):
            for path in paths:
                experiment.log_artifact(logger.run_id, str(path), f"{name}/step-{step:06d}")
