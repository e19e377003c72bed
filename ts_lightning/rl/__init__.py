"""What exists only for GRPO: rewards, rollouts, the reference policy."""

from ts_lightning.rl.completion import Completion, Object, answer_objects
from ts_lightning.rl.rewards import format_reward, image_reward, object_reward

__all__ = ["Completion", "Object", "answer_objects", "format_reward", "image_reward", "object_reward"]
