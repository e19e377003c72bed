"""Reinforcement learning on groups of completions. Shapes: B prompts, N completions, G of one prompt, S steps."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ts_lightning.losses import MIRG, Algorithm, GRPOTerms
from ts_lightning.models.ranks import of_all
from ts_lightning.models.sharding import is_sharded
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rollout import Rollout, RolloutCallback
from ts_lightning.rl.sampling import PromptEncoder
from ts_lightning.training.base import BaseModule
from ts_lightning.training.schedule import WarmupCosine
from ts_lightning.training.silence import StopWithoutGradient

ON_THE_BAR = ("reward/total", "zero_variance", "completion_length")


class GRPO(BaseModule):
    """Rollout, rewards, advantages, loss: one step of any algorithm of `ts_lightning.losses`, MIRG-RL eq. 5 by default.

    `ts_lightning.rl.RolloutCallback` says how completions are drawn and rewarded. The data's global batch counts
    prompts; 16 prompts of 8 completions are the paper's 128. They are answered once and trained on in
    `num_iterations` * `num_mini_batches` optimizer steps: the datamodule serves the batch that often, and what was
    drawn, with the sampler's log-probabilities, is kept until then, in checkpoints too. Ratios are 1 at the first of
    these steps, and move away from it later. Each group is one forward and one backward, with its prompt in
    it once. Dropout is off, and experts are chosen as in evaluation: policy,
    reference and rollout run the same form.

    Args:
        vlm: The policy; what trains is its own business.
        optimizer: As in `SFT`.
        lr_scheduler: As in `SFT`.
        alpha_lr_factor: As in `SFT`.
        max_new_tokens: Of validation; rollouts have their own.
        algorithm: Advantages and loss; None is MIRG-RL's (`ts_lightning.losses.MIRG`).
        num_iterations: How often each completion is trained on.
        num_mini_batches: Steps of one iteration, each on its part of the micro-batches.
        kl_coeff: Weight of the divergence from the reference; 0 keeps none.
        constrain: As in `SFT`; rollouts have their own (`RolloutCallback`).
        offload_reference: Keep a full copy on the CPU (backbones that train without experts or adapters).
    """

    trains_on_prompts = True  # the datamodule encodes training records without their answer

    def __init__(
        self,
        vlm: VLM,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = WarmupCosine,
        alpha_lr_factor: float = 1.0,
        max_new_tokens: int = 64,
        algorithm: Algorithm | None = None,
        num_iterations: int = 1,
        num_mini_batches: int = 1,
        kl_coeff: float = 0.04,
        offload_reference: bool = False,
        constrain: bool = False,
    ) -> None:
        if kl_coeff < 0:
            raise ValueError(f"kl_coeff: seen {kl_coeff}, expected at least 0")
        super().__init__(vlm, optimizer, lr_scheduler, alpha_lr_factor, max_new_tokens, constrain)
        for name, value in (("num_iterations", num_iterations), ("num_mini_batches", num_mini_batches)):
            if value < 1:
                raise ValueError(f"{name}: seen {value}, expected at least 1")
        self.algorithm = algorithm or MIRG()
        self.num_mini_batches = num_mini_batches
        self.updates_per_batch = num_iterations * num_mini_batches  # the datamodule serves a batch as often
        self.updates, self.rollouts = 0, list[Rollout]()  # those made on this batch, and its completions
        self.stored: list[dict[str, Any]] = []  # the prompts of a checkpoint in the middle of a batch, of all ranks
        self.kl_coeff, self.offload_reference = kl_coeff, offload_reference
        self.reference: ReferencePolicy | None = None

    def train(self, mode: bool = True) -> "GRPO":
        """The vlm stays in eval mode: a backward that recomputes layers would draw dropout, too."""
        super().train(mode)
        self.vlm.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        """Groups of equal rewards have no gradient, and say so by themselves (`rl.diagnostics`)."""
        return [callback for callback in super().configure_callbacks() if not isinstance(callback, StopWithoutGradient)]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.kl_coeff and self.reference is None:
            self.reference = ReferencePolicy(self.vlm, self.offload_reference)

    def _hold_dtypes(self) -> None:
        # Every fit, validate and test sets up again: the reference is frozen by then, and would be rounded to 16 bits.
        if self.reference is None:
            super()._hold_dtypes()

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None and is_sharded(self.vlm):
            self.reference.shard()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Rollout, rewards, advantages, loss; of several updates on one rollout, the next."""
        micro_batches, callback = batch["micro_batches"], self._rollout_callback()
        if (count := len(micro_batches)) % self.num_mini_batches:
            expected = f"expected a divisor of the {count} micro-batches of a rank"
            raise ValueError(f"num_mini_batches: seen {self.num_mini_batches}, {expected}")
        micro_batches = [micro | self.vlm.run(VLM.frozen_features, micro) for micro in micro_batches]
        if getattr(self.trainer, "overfit_batches", 0):  # then data begin again, whatever updates are left
            names = [sample.id for micro in micro_batches for sample in micro["samples"]]
            drawn = [name for rollout in self.rollouts for name in rollout.ids] or self._stored_ids(len(names))
            if any(of_all(bool(drawn) and drawn != names)):
                self.updates, self.rollouts, self.stored = 0, [], []
        if not self.rollouts:
            if self.updates:
                self.rollouts = self._stored_rollouts(callback, micro_batches)
            else:
                again = self._rounds and self.updates_per_batch > 1 and callback.engine is None
                self.rollouts = callback.roll_out(self.vlm, micro_batches, self.trainer.global_step, again)
            for rollout in self.rollouts:
                rewards_BG = rollout.total.view(len(rollout.completions), -1)
                rollout.advantages = self.algorithm.advantages(rewards_BG).flatten() * rollout.emphasis
            if "ahead" in batch and not self._is_last_batch():
                callback.draw_ahead(self.vlm, batch["ahead"], self.trainer.global_step)
            if not self.updates:
                callback.report(self.trainer, self, micro_batches, self.rollouts)
        for name, value in callback.figures.items():
            self.log(f"train/{name}", value, prog_bar=name in ON_THE_BAR, batch_size=1)
        micro_batches = [m | {"rollout": r} for m, r in zip(micro_batches, self.rollouts, strict=True)]
        part = slice(self.updates % self.num_mini_batches, None, self.num_mini_batches)
        loss = super().training_step(batch | {"micro_batches": micro_batches[part]}, batch_idx)
        self.updates = (self.updates + 1) % self.updates_per_batch
        if not self.updates:
            self.rollouts = []
        return loss

    @property
    def _rounds(self) -> bool:
        """Whether 16 bits round a token's log-probability otherwise in sampling, by more than bounds on ratios take."""
        halves = (torch.bfloat16, torch.float16)
        return "16" in str(self.trainer.precision) or any(p.dtype in halves for p in self.vlm.parameters())

    def _is_last_batch(self) -> bool:
        """Whether `max_steps` ends the run with the updates on this batch."""
        left = self.updates_per_batch - self.updates
        return 0 <= getattr(self.trainer, "max_steps") <= self.trainer.global_step + left  # noqa: B009

    @property
    def draws_ahead(self) -> bool:
        """Whether the next batch's prompts are answered while this one is trained on; the datamodule asks."""
        engine = self._rollout_callback().engine
        return engine is not None and bool(engine.ahead)

    def prompt_encoder(self, encode: Callable[..., dict[str, Any]]) -> PromptEncoder:
        """What makes rows of training records: with room for their completions; the datamodule asks."""
        return PromptEncoder(encode, self._rollout_callback().max_new_tokens, self.vlm.encoder.max_length)

    def _rollout_callback(self) -> RolloutCallback:
        for callback in getattr(self.trainer, "callbacks"):  # noqa: B009
            if isinstance(callback, RolloutCallback):
                return callback
        raise ValueError("trainer.callbacks: seen no rollouts, expected a ts_lightning.rl.RolloutCallback")

    def _stored_rollouts(self, callback: RolloutCallback, micro_batches: list[dict[str, Any]]) -> list[Rollout]:
        """Completions that a checkpoint holds, scored again: this rank's, in the order of the global batch."""
        expected = [sample.id for micro in micro_batches for sample in micro["samples"]]
        if (seen := self._stored_ids(len(expected))) != expected:
            raise ValueError(f"checkpoint: seen completions of {seen}, expected those of the batch's {expected}")
        prompts, self.stored = self._stored_here(len(expected)), []
        return callback.scored_all(self.vlm, micro_batches, prompts)

    def _stored_here(self, count: int) -> list[dict[str, Any]]:
        """This rank's prompts of a checkpoint, where each rank has so many."""
        start = self.trainer.global_rank * count
        return self.stored[start : start + count]

    def _stored_ids(self, count: int) -> list[str]:
        return [prompt["id"] for prompt in self._stored_here(count)]

    def _drawn_of_all_ranks(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of the completions, in the order of the global batch; every rank has to call it."""
        mine = [drawn for rollout in self.rollouts for drawn in rollout.drawn()] or self.stored
        return [drawn for part in of_all(mine) for drawn in part] if self.rollouts else mine

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        rollout = batch["rollout"]
        empty_NS = torch.zeros_like(rollout.old_logp_NS)
        return self.terms(batch, empty_NS, empty_NS).weight.sum()  # weights depend on lengths alone

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Each completion's terms; they are divided by the global batch's completions (or tokens)."""
        rollout, reference_NS = batch["rollout"], None
        tokens = rollout.token_ids
        if self.reference is not None:
            with self.reference.active() as package:
                scores = self.vlm.run(
                    group_log_probs, batch, tokens, rollout.temperature, package, False, rollout.allowed
                )
            reference_NS = scores.logp_NT
        scores = self.vlm.run(group_log_probs, batch, tokens, rollout.temperature, allowed=rollout.allowed)
        self.count_experts(scores.expert_ids)
        own = self._rounds and self.updates_per_batch == 1  # the one update is of the policy that drew
        old_NS = scores.logp_NT.detach() if own else rollout.old_logp_NS
        terms = self.terms(batch, scores.logp_NT, old_NS, reference_NS)
        entropy_N = scores.entropy_NT.sum(1) / rollout.mask_NS.sum(1).clamp(min=1)
        means = {"kl": terms.kl, "clipped": terms.clipped, "entropy": entropy_N}  # averaged as the loss is
        return {"loss": terms.loss} | {name: values_N * terms.weight for name, values_N in means.items()}

    def terms(self, batch: dict[str, Any], logp_NS: Tensor, old_NS: Tensor, ref_NS: Tensor | None = None) -> GRPOTerms:
        """The loss terms of a micro-batch's completions; those of padding rows are zero."""
        rollout = batch["rollout"]
        valid_N = batch["row_valid"].repeat_interleave(len(rollout.completions[0]))
        terms = self.algorithm.terms(
            logp_NS,
            old_NS,
            rollout.advantages,
            rollout.mask_NS,
            ref_NS,
            self.kl_coeff,
            rollout.max_tokens,
            rollout.weight_NS,
        )
        return GRPOTerms(*(torch.where(valid_N, values_N, 0.0) for values_N in terms))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.reference is not None:
            checkpoint["reference"] = self.reference.state_dict()
        if self.updates:
            checkpoint["rollout"] = {"updates": self.updates, "prompts": self._drawn_of_all_ranks()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None and "reference" in checkpoint:
            self.reference.load_state_dict(checkpoint["reference"])
        stored = checkpoint.get("rollout", {"updates": 0, "prompts": []})
        self.updates, self.stored, self.rollouts = stored["updates"], stored["prompts"], []
