"""The nn.Modules: backbones, mixtures of experts, twin experts, decoding, packages."""

from ts_lightning.models.lora import LoRAVLM
from ts_lightning.models.moe import MoE
from ts_lightning.models.task_router import TaskRouter
from ts_lightning.models.twin import TwinExpert
from ts_lightning.models.twin_vlm import TwinExpertVLM
from ts_lightning.models.vlm import VLM, PlainVLM

__all__ = ["VLM", "LoRAVLM", "MoE", "PlainVLM", "TaskRouter", "TwinExpert", "TwinExpertVLM"]
