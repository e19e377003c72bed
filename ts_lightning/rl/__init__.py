"""What exists only for GRPO: rewards, rollouts, the reference policy."""

from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rewards import (
    f1_reward,
    format_reward,
    image_reward,
    length_reward,
    object_reward,
    repeat_reward,
    strict_reward,
    thought_reward,
)
from ts_lightning.rl.rollout import Rollout, RolloutCallback
from ts_lightning.rl.vllm_engine import VLLMEngine

__all__ = [
    "Completion",
    "ReferencePolicy",
    "Rollout",
    "RolloutCallback",
    "VLLMEngine",
    "f1_reward",
    "format_reward",
    "image_reward",
    "length_reward",
    "object_reward",
    "read_completion",
    "repeat_reward",
    "strict_reward",
    "thought_reward",
]
