"""What exists only for GRPO: rewards, rollouts, the reference policy."""

from ts_lightning.rl.completion import Completion, Object, answer_objects
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rewards import format_reward, image_reward, object_reward
from ts_lightning.rl.rollout import Rollout, RolloutCallback

__all__ = [
    "Completion",
    "Object",
    "ReferencePolicy",
    "Rollout",
    "RolloutCallback",
    "answer_objects",
    "format_reward",
    "image_reward",
    "object_reward",
]
