"""LightningModules, optimizer and schedule, callbacks."""

from ts_lightning.training.base import BaseModule
from ts_lightning.training.callbacks import PredictionWriter, Throughput
from ts_lightning.training.cast_once import CastOnce
from ts_lightning.training.grpo import GRPO
from ts_lightning.training.lora_sft import LoRASFT
from ts_lightning.training.progress import Progress
from ts_lightning.training.schedule import WarmupCosine
from ts_lightning.training.sft import SFT
from ts_lightning.training.stepwise_sft import StepwiseSFT

__all__ = [
    "GRPO",
    "SFT",
    "BaseModule",
    "CastOnce",
    "LoRASFT",
    "PredictionWriter",
    "Progress",
    "StepwiseSFT",
    "Throughput",
    "WarmupCosine",
]
