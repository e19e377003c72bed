"""LightningModules, checkpoint files and callbacks."""

from ts_lightning.training.base import BaseModule
from ts_lightning.training.callbacks import PredictionWriter
from ts_lightning.training.checkpoint_io import CheckpointIO
from ts_lightning.training.fsdp2 import FSDP2Strategy
from ts_lightning.training.grpo import GRPO
from ts_lightning.training.load import load
from ts_lightning.training.lora_sft import LoRASFT
from ts_lightning.training.nonfinite import SkipNonFinite
from ts_lightning.training.save_checkpoints import SaveCheckpoints
from ts_lightning.training.schedule import WarmupCosine
from ts_lightning.training.sft import SFT
from ts_lightning.training.stepwise_sft import StepwiseSFT
from ts_lightning.training.zero2 import ZeRO2Strategy

__all__ = [
    "GRPO",
    "SFT",
    "BaseModule",
    "CheckpointIO",
    "FSDP2Strategy",
    "LoRASFT",
    "PredictionWriter",
    "SaveCheckpoints",
    "SkipNonFinite",
    "StepwiseSFT",
    "WarmupCosine",
    "ZeRO2Strategy",
    "load",
]
