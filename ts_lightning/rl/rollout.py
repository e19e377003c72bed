"""The callback that answers a training batch's prompts and scores the answers. Shapes: N completions, S steps."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ts_lightning.data.sample import Sample
from ts_lightning.models.sharding import all_ranks_done
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.diagnostics import Watch, rollout_figures, sum_over_ranks
from ts_lightning.rl.rewards import load_rewards, score
from ts_lightning.rl.sampling import Sampled, sample_groups
from ts_lightning.rl.table import write_table

log = logging.getLogger("ts_lightning.rl")
REWARDS = {name: f"ts_lightning.rl.{name}_reward" for name in ("format", "image", "object")}


@dataclass
class Rollout:
    """Completions of one micro-batch: `completions[b][g]` of sample `ids[b]`, and what the loss needs of them.

    Completion g of sample b is row b * G + g. `old_logp_NS` (the sampler's) and `mask_NS` [N, S]; `rewards` by name
    [N]; `total` [N] is their sum. `advantages` [N] are the algorithm's, times `emphasis` [N] (how much a prompt
    counts); GRPO fills them in. Log-probabilities are taken at `temperature`; `max_tokens` was the limit.
    """

    ids: list[str]
    completions: list[list[Completion]]
    old_logp_NS: Tensor
    mask_NS: Tensor
    rewards: dict[str, Tensor]
    total: Tensor
    advantages: Tensor
    emphasis: Tensor
    temperature: float
    max_tokens: int

    @property
    def token_ids(self) -> list[list[list[int]]]:
        """The tokens of `completions`."""
        return [[completion.token_ids for completion in group] for group in self.completions]

    def drawn(self) -> list[dict[str, Any]]:
        """What can't be computed again once the policy has moved on, in plain values, of each prompt."""
        size = len(self.completions[0])
        logps = [row.cpu() for row in self.old_logp_NS.split(size)]
        return [
            {
                "id": sample,
                "tokens": [completion.token_ids for completion in group],
                "stopped": [completion.stopped for completion in group],
                "logp": logp[:, : max(len(completion.token_ids) for completion in group)].clone(),
            }
            for sample, group, logp in zip(self.ids, self.completions, logps, strict=True)
        ]


def drawn_again(prompts: Sequence[Mapping[str, Any]], device: torch.device) -> Sampled:
    """The completions of a micro-batch from what `Rollout.drawn` gave of its prompts."""
    steps = max(prompt["logp"].shape[1] for prompt in prompts)
    padded = [torch.nn.functional.pad(prompt["logp"], (0, steps - prompt["logp"].shape[1])) for prompt in prompts]
    logp_NS = torch.cat(padded).to(device)
    return Sampled([prompt["tokens"] for prompt in prompts], logp_NS, [prompt["stopped"] for prompt in prompts])


class RolloutCallback(Callback):
    """How `GRPO` gets its completions and their rewards, and what is said about them.

    Every completion's total is the sum of its rewards (MIRG-RL eq. 3).
    `GRPO` keeps the vlm in eval mode: no dropout, experts as in evaluation.

    Args:
        num_generations: Completions of each prompt; `global_batch_size` counts prompts.
        temperature: Of sampling, and of every log-probability.
        top_p: Draw from the likeliest tokens up to this mass.
        max_new_tokens: Longest completion.
        stop_after: A completion ends behind this text (None: at the end mark alone).
        rewards: Dotted paths of functions, by the name they are logged under.
        reward_options: Keyword arguments of a reward, by its name.
        difficulty: Advantages are multiplied by exp(difficulty * (0.5 - the group's mean object reward)); 0 is off.
        seed: With step, sample id and completion number it names the noise.
        table_every: Write a table of prompts with pictures and completions every so many steps (0: never).
        table_prompts: Prompts of one table.
    """

    def __init__(
        self,
        num_generations: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        stop_after: str | None = "</answer>",
        rewards: dict[str, str] | None = None,
        reward_options: dict[str, dict[str, Any]] | None = None,
        difficulty: float = 0.0,
        seed: int = 0,
        table_every: int = 0,
        table_prompts: int = 2,
    ) -> None:
        checks = {"num_generations": (num_generations, 2), "max_new_tokens": (max_new_tokens, 1)}
        for name, (value, least) in checks.items():
            if value < least:
                raise ValueError(f"{name}: seen {value}, expected at least {least}")
        if temperature <= 0 or not 0 < top_p <= 1:
            seen = f"{temperature} and {top_p}"
            raise ValueError(f"temperature, top_p: seen {seen}, expected above 0, and above 0 to 1")
        self.num_generations, self.max_new_tokens = num_generations, max_new_tokens
        self.temperature, self.top_p, self.stop_after, self.seed = temperature, top_p, stop_after, seed
        self.rewards = load_rewards(rewards or REWARDS, reward_options or {})
        self.difficulty = difficulty
        if difficulty and "object" not in self.rewards:
            raise ValueError("difficulty: seen no reward named object, expected it: it says how hard a prompt is")
        self.table_every, self.table_prompts = table_every, table_prompts
        self.watch = Watch()
        self.figures: dict[str, float] = {}  # the last value of each, for steps without that task

    def state_dict(self) -> dict[str, Any]:
        return {"figures": self.figures, "watch": asdict(self.watch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.figures, self.watch = state_dict["figures"], Watch(**state_dict["watch"])

    def roll_out(self, vlm: VLM, micro_batches: Sequence[Mapping[str, Any]], step: int = 0) -> list[Rollout]:
        """Answer and score the prompts of micro-batches."""
        return [self.scored(vlm, batch["samples"], self.sample(vlm, batch, step)) for batch in micro_batches]

    def sample(self, vlm: VLM, batch: Mapping[str, Any], step: int) -> Sampled:
        """Draw the completions of a batch's prompts; all ranks have to call it as often."""
        return vlm.run(
            sample_groups,
            batch,
            self.num_generations,
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            self.stop_after,
            self.seed,
            step,
            all_ranks_done,
        )

    def report(self, trainer: L.Trainer, pl_module: Any, micro_batches: Sequence[Any], rollouts: list[Rollout]) -> None:
        """Figures of new rollouts over all ranks, advice, and a table where one is due."""
        step = trainer.global_step
        figures = sum_over_ranks(rollout_figures(micro_batches, rollouts))
        self.figures |= figures
        for line in self.watch.add(step, figures):
            if trainer.is_global_zero:
                log.warning(line)
        if self.table_every and step % self.table_every == 0 and trainer.is_global_zero:
            write_table(trainer, pl_module.vlm, micro_batches[0], rollouts[0], step, self.table_prompts)

    def scored(self, vlm: VLM, samples: list[Sample], sampled: Sampled) -> Rollout:
        """Completions with their rewards and advantages."""
        completions, values = [], []
        for sample, group, stopped in zip(samples, sampled.tokens, sampled.stopped, strict=True):
            completions.append([_completion(vlm, sample, ids, end) for ids, end in zip(group, stopped, strict=True)])
            values += [score(self.rewards, completion, sample) for completion in completions[-1]]
        device = sampled.logp_NS.device
        rewards = {name: torch.tensor([v[name] for v in values], device=device) for name in self.rewards}
        total_N = torch.stack(list(rewards.values())).sum(0)
        emphasis_N = torch.ones_like(total_N)
        if self.difficulty:
            mean_B = rewards["object"].view(len(samples), -1).mean(1)
            emphasis_N = (self.difficulty * (0.5 - mean_B)).exp().repeat_interleave(self.num_generations)
        lengths = torch.tensor([len(ids) for group in sampled.tokens for ids in group], device=device)
        mask_NS = torch.arange(sampled.logp_NS.shape[1], device=device) < lengths[:, None]
        return Rollout(
            [sample.id for sample in samples],
            completions,
            sampled.logp_NS,
            mask_NS,
            rewards,
            total_N,
            torch.zeros_like(total_N),
            emphasis_N,
            self.temperature,
            self.max_new_tokens,
        )


def _completion(vlm: VLM, sample: Sample, ids: list[int], stopped: bool) -> Completion:
    spoken = ids[:-1] if ids and ids[-1] == vlm.tokenizer.eos_token_id else ids
    text = vlm.tokenizer.decode(spoken, skip_special_tokens=False)
    return Completion(text, ids, stopped, read_completion(text, vlm.codec, sample))
