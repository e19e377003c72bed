"""The callback that answers a training batch's prompts and scores the answers. Shapes: N completions, S steps."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ts_lightning.data.sample import Sample
from ts_lightning.losses.grpo import equal_rewards
from ts_lightning.models.packing import joined
from ts_lightning.models.ranks import of_all, rank
from ts_lightning.models.sharding import all_ranks_done, kept_whole
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.allowed import Allowed, allowed_of
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.diagnostics import Watch, rollout_figures, sum_over_ranks
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.mismatch import weighted
from ts_lightning.rl.rewards import load_rewards, score
from ts_lightning.rl.sampling import Sampled, drawn, sample_groups
from ts_lightning.rl.table import write_table
from ts_lightning.rl.vllm_engine import VLLMEngine

log = logging.getLogger("ts_lightning.rl")
REWARDS = {name: f"ts_lightning.rl.{name}_reward" for name in ("format", "image", "object")}


@dataclass
class Rollout:
    """Completions of one micro-batch: `completions[b][g]` of sample `ids[b]`, and what the loss needs of them.

    Completion g of sample b is row b * G + g. `old_logp_NS` (the sampler's, or read again) and `mask_NS` [N, S];
    `rewards` by name [N]; `total` [N] is their sum. `advantages` [N] are the algorithm's, times `emphasis` [N] (how
    much a prompt counts); GRPO fills them in. Log-probabilities are taken at `temperature`; `max_tokens` was the limit.
    `weight_NS`: of tokens that another engine drew; `old_logp_NS` are then the policy's own. `allowed`: what the tokens
    were drawn among, where that was constrained.
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
    weight_NS: Tensor | None = None
    allowed: Allowed | None = None

    @property
    def token_ids(self) -> list[list[list[int]]]:
        """The tokens of `completions`."""
        return [[completion.token_ids for completion in group] for group in self.completions]

    def drawn(self) -> list[dict[str, Any]]:
        """What isn't computed again, of each prompt (`sampling.drawn` and `RolloutCallback.scored` read it).

        The policy moves on; a reward may be a judge that is paid, or give something else when asked again.
        """
        stopped = [[completion.stopped for completion in group] for group in self.completions]
        prompts = Sampled(self.token_ids, self.old_logp_NS, stopped, self.weight_NS).prompts()
        size = len(self.completions[0])
        for b, prompt in enumerate(prompts):
            rewards = {name: value_N.view(-1, size)[b].tolist() for name, value_N in self.rewards.items()}
            prompt |= {"id": self.ids[b], "rewards": rewards}
        return prompts


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
        rollout_batch_size: Prompts of a rank that are decoded together, in whole micro-batches; None: all of a step's.
        constrain: A begun box is always finished as the codec writes it (`models.constrain`); every log-probability is
            then one among the tokens that may follow. Validation has the module's own `constrain`.
        cuda_graph: On CUDA, capture a decoding step once and launch it again for the tokens behind
            (`models.cuda_graph`), where at most 128 completions are drawn together. Never run: no GPU was at hand.
        refills: Draw again, up to so many times, where all completions of a prompt get the same reward. DAPO's dynamic
            sampling takes other prompts; here the data of a step stay what they are.
        seed: With step, sample id and completion number it names the noise.
        engine: What draws in place of our own loop: `VLLMEngine`.
        table_every: Write a table of prompts with pictures and completions every so many rollouts (0: never).
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
        rollout_batch_size: int | None = None,
        constrain: bool = False,
        cuda_graph: bool = False,
        refills: int = 0,
        seed: int = 0,
        engine: VLLMEngine | None = None,
        table_every: int = 0,
        table_prompts: int = 2,
    ) -> None:
        checks = {"num_generations": (num_generations, 2), "max_new_tokens": (max_new_tokens, 1)}
        checks |= {"rollout_batch_size": (rollout_batch_size or 1, 1), "refills": (refills, 0)}
        for name, (value, least) in checks.items():
            if value < least:
                raise ValueError(f"{name}: seen {value}, expected at least {least}")
        if temperature <= 0 or not 0 < top_p <= 1:
            seen = f"{temperature} and {top_p}"
            raise ValueError(f"temperature, top_p: seen {seen}, expected above 0, and above 0 to 1")
        self.num_generations, self.max_new_tokens = num_generations, max_new_tokens
        self.own_loop: dict[str, Any] = {"constrain": constrain, "cuda_graph": cuda_graph}  # of our own loop
        for name in (name for name, asked in self.own_loop.items() if asked and engine is not None):
            raise ValueError(f"{name}: seen with an engine, which draws in its own way, expected one of the two")
        self.temperature, self.top_p, self.stop_after, self.seed = temperature, top_p, stop_after, seed
        self.rollout_batch_size, self.refills = rollout_batch_size, refills
        self.rewards = load_rewards(rewards or REWARDS, reward_options or {})
        self.difficulty = difficulty
        if difficulty and "object" not in self.rewards:
            raise ValueError("difficulty: seen no reward named object, expected it: it says how hard a prompt is")
        self.table_every, self.table_prompts = table_every, table_prompts
        self.engine = engine
        self.watch = Watch()
        self.figures: dict[str, float] = {}  # the last value of each, for steps without that task

    def state_dict(self) -> dict[str, Any]:
        return {"figures": self.figures, "watch": asdict(self.watch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.figures, self.watch = state_dict["figures"], Watch(**state_dict["watch"])

    def roll_out(
        self, vlm: VLM, micro_batches: Sequence[Mapping[str, Any]], step: int = 0, read_again: bool = False
    ) -> list[Rollout]:
        """Answer and score the prompts of micro-batches; every rank has to call it with as many.

        Prompts whose completions all get one and the same reward are answered again, up to `refills` times.
        read_again: log-probabilities are those of a forward as in training, in place of the sampler's.
        """
        names = global_names([sample.id for micro in micro_batches for sample in micro["samples"]])
        prompts = self._weighted(vlm, micro_batches, vlm.run(self._drawn, micro_batches, names, step), step)
        rollouts = self.scored_all(vlm, micro_batches, prompts)
        for attempt in range(1, self.refills + 1):
            equal = [
                flag for micro, rollout in zip(micro_batches, rollouts, strict=True) for flag in _equal(micro, rollout)
            ]
            if not any(of_all(any(equal))):
                break
            fresh = vlm.run(self._drawn, micro_batches, [f"{name} refill {attempt}" for name in names], step, equal)
            fresh = self._weighted(vlm, micro_batches, fresh, step, equal)
            kept = (prompt for rollout in rollouts for prompt in rollout.drawn())
            prompts = [new if again else old for old, new, again in zip(kept, fresh, equal, strict=True)]
            rollouts = self.scored_all(vlm, micro_batches, prompts)
        for micro, rollout in zip(micro_batches, rollouts, strict=True) if read_again else ():
            with torch.no_grad():
                tokens, allowed = rollout.token_ids, rollout.allowed
                scores = vlm.run(group_log_probs, micro, tokens, self.temperature, None, False, allowed)
            rollout.old_logp_NS = scores.logp_NT
        # autocast's copies of weights were made without gradients, and torch 2.8 and 2.9 would give them to the update
        torch.clear_autocast_cache()
        return rollouts

    def _drawn(
        self,
        vlm: VLM,
        micro_batches: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        step: int,
        wanted: Sequence[bool] | None = None,
    ) -> list[dict[str, Any]]:
        """Completions of all prompts, so many prompts decoded together; weights are gathered once."""
        prompts: list[dict[str, Any]] = []
        draw: Any = partial(sample_groups, **self.own_loop) if self.engine is None else self.engine.sample_groups
        with kept_whole(vlm):
            for batch, mine in self._together(vlm, micro_batches):
                own = None if wanted is None else wanted[mine]
                prompts += draw(vlm, batch, names=names[mine], wanted=own, **self._arguments(step)).prompts()
        return prompts

    def draw_ahead(self, vlm: VLM, micro_batches: Sequence[Mapping[str, Any]], step: int) -> None:
        """Let the engine answer the next batch's prompts while this one is trained on; every rank has to call it."""
        names = global_names([sample.id for micro in micro_batches for sample in micro["samples"]])
        for batch, mine in self._together(vlm, micro_batches):
            if self.engine is not None:
                self.engine.begin(vlm, batch, names=names[mine], **self._arguments(step))

    def _arguments(self, step: int) -> dict[str, Any]:
        """What every draw of a step has in common."""
        return {
            "group": self.num_generations,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop_after": self.stop_after,
            "seed": self.seed,
            "step": step,
            "all_done": all_ranks_done,
        }

    def _together(self, vlm: VLM, micro_batches: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], slice]]:
        """Micro-batches whose prompts are decoded together, as one, and which of the prompts they are."""
        together = max(1, (self.rollout_batch_size or 10**9) // len(micro_batches[0]["samples"]))  # micro-batches
        first = 0
        for start in range(0, len(micro_batches), together):
            batch = joined(micro_batches[start : start + together], vlm.pad_id)
            yield batch, slice(first, first + len(batch["samples"]))
            first += len(batch["samples"])

    def _weighted(
        self,
        vlm: VLM,
        micro_batches: Sequence[Mapping[str, Any]],
        prompts: list[dict[str, Any]],
        step: int,
        wanted: Sequence[bool] | None = None,
    ) -> list[dict[str, Any]]:
        """What another engine drew, with the policy's own log-probabilities and the weights that make up for its.

        Figures are those of all prompts: the wanted ones of a refill are checked alone.
        """
        if self.engine is None:
            return prompts
        sums = weighted(vlm, micro_batches, prompts, self.temperature, self.engine.tis_cap, wanted)
        stale = {"staleness": (float(sum(self.engine.staleness)), float(len(self.engine.staleness)))}
        figures = sum_over_ranks({"mismatch_kl": sums, **stale})
        if wanted is None:
            self.figures |= figures
        if (seen := figures["mismatch_kl"]) > (limit := self.engine.max_mismatch_kl):
            why = "do engine and trainer see the same pictures, weights and dtype? `certify --against` tells"
            raise ValueError(f"step {step}: mismatch_kl: seen {seen:.4g}, expected at most {limit} ({why})")
        return prompts

    def scored_all(
        self, vlm: VLM, micro_batches: Sequence[Mapping[str, Any]], prompts: Sequence[Mapping[str, Any]]
    ) -> list[Rollout]:
        """The rollouts of micro-batches from what was drawn for their prompts; rewards that are there stay."""
        rest, rollouts = iter(prompts), []
        for micro in micro_batches:
            own = [next(rest) for _ in micro["samples"]]
            known = [prompt.get("rewards") for prompt in own]
            rollouts.append(self.scored(vlm, micro["samples"], drawn(own, micro["input_ids"].device), known))
        return rollouts

    def report(self, trainer: L.Trainer, pl_module: Any, micro_batches: Sequence[Any], rollouts: list[Rollout]) -> None:
        """Figures of new rollouts over all ranks, advice, and a table where one is due."""
        step = trainer.global_step
        figures = sum_over_ranks(rollout_figures(micro_batches, rollouts))
        self.figures |= figures
        for line in self.watch.add(step, figures, rollouts[0].completions[0][0].text):
            if trainer.is_global_zero:
                log.warning(line)
        rollout = step // pl_module.updates_per_batch
        if self.table_every and rollout % self.table_every == 0 and trainer.is_global_zero:
            write_table(trainer, pl_module.vlm, micro_batches, rollouts, step, self.table_prompts)

    def scored(
        self,
        vlm: VLM,
        samples: list[Sample],
        sampled: Sampled,
        known: Sequence[Mapping[str, list[float]] | None] | None = None,
    ) -> Rollout:
        """Completions with their rewards; their advantages are the algorithm's to fill in.

        known: each prompt's rewards by name, where they were asked for before.
        """
        completions, values = [], {name: list[float]() for name in self.rewards}
        rest = zip(samples, sampled.tokens, sampled.stopped, known or [None] * len(samples), strict=True)
        for sample, group, stopped, found in rest:
            completions.append([_completion(vlm, sample, ids, end) for ids, end in zip(group, stopped, strict=True)])
            if found is None or found.keys() != values.keys():
                scores = [score(self.rewards, completion, sample) for completion in completions[-1]]
                found = {name: [one[name] for one in scores] for name in values}
            for name, value in values.items():
                value += found[name]
        device = sampled.logp_NS.device
        rewards = {name: torch.tensor(value, device=device) for name, value in values.items()}
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
            sampled.weight_NS,
            allowed_of(vlm, samples, sampled.tokens, self.max_new_tokens, device)
            if self.own_loop["constrain"]
            else None,
        )


def global_names(ids: list[str]) -> list[str]:
    """Names of this rank's prompts: the sample's id, and where it has come before in the global batch its turn."""
    seen: Counter[str] = Counter(name for part in of_all(ids)[: rank()] for name in part)
    names = []
    for name in ids:
        names.append(f"{name} again {seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _equal(batch: Mapping[str, Any], rollout: Rollout) -> list[bool]:
    """Of each prompt that counts, whether all of its completions got the same reward."""
    total_BG = rollout.total.view(len(rollout.completions), -1)
    return (equal_rewards(total_BG) & batch["row_valid"].to(total_BG.device)).tolist()


def _completion(vlm: VLM, sample: Sample, ids: list[int], stopped: bool) -> Completion:
    spoken = ids[:-1] if ids and ids[-1] == vlm.tokenizer.eos_token_id else ids
    text = vlm.tokenizer.decode(spoken, skip_special_tokens=False)
    return Completion(text, ids, stopped, read_completion(text, vlm.codec, sample))
