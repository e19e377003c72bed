"""A run that goes on: checkpoint files, resume, lock, signals, watch, strategies."""

from ts_lightning.runs.checkpoint_io import CheckpointIO
from ts_lightning.runs.fsdp2 import FSDP2Strategy
from ts_lightning.runs.nonfinite import SkipNonFinite
from ts_lightning.runs.save_checkpoints import SaveCheckpoints
from ts_lightning.runs.trackio_logger import TrackioLogger
from ts_lightning.runs.zero2 import ZeRO2Strategy

__all__ = ["CheckpointIO", "FSDP2Strategy", "SaveCheckpoints", "SkipNonFinite", "TrackioLogger", "ZeRO2Strategy"]
