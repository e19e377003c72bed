"""What exists only for GRPO: rewards, rollouts, the reference policy."""

from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rewards import format_reward, image_reward, object_reward
from ts_lightning.rl.rollout import Rollout, RolloutCallback

__all__ = [
    "Completion",
    "ReferencePolicy",
    "Rollout",
    "RolloutCallback",
    "format_reward",
    "image_reward",
    "object_reward",
    "read_completion",
]
