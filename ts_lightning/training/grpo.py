"""Reinforcement learning on groups of completions. Shapes: B prompts, N completions, G of one prompt, S steps."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ts_lightning.losses import MIRG, Algorithm, GRPOTerms
from ts_lightning.models.sharding import is_sharded
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.training.base import BaseModule
from ts_lightning.training.schedule import WarmupCosine


class GRPO(BaseModule):
    """Rollout, rewards, advantages, loss: one step of any algorithm of `ts_lightning.losses`, MIRG-RL eq. 5 by default.

    The completions, and their rewards, are those that `ts_lightning.rl.RolloutCallback` puts into the batch.

    The data's global batch counts prompts; 16 prompts of 8 completions are the paper's 128. Each group is one forward
    and one backward, with its prompt in it once. Dropout is off, and experts are chosen as in evaluation: policy,
    reference and rollout run the same form.

    Args:
        vlm: The policy; what trains is its own business.
        optimizer: As in `SFT`.
        lr_scheduler: As in `SFT`.
        alpha_lr_factor: As in `SFT`.
        max_new_tokens: Of validation; rollouts have their own.
        algorithm: Advantages and loss; None is MIRG-RL's (`ts_lightning.losses.MIRG`).
        kl_coeff: Weight of the divergence from the reference; 0 keeps none.
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
        kl_coeff: float = 0.04,
        offload_reference: bool = False,
    ) -> None:
        if kl_coeff < 0:
            raise ValueError(f"kl_coeff: seen {kl_coeff}, expected at least 0")
        super().__init__(vlm, optimizer, lr_scheduler, alpha_lr_factor, max_new_tokens)
        self.algorithm = algorithm or MIRG()
        self.kl_coeff, self.offload_reference = kl_coeff, offload_reference
        self.reference: ReferencePolicy | None = None

    def train(self, mode: bool = True) -> "GRPO":
        """The vlm stays in eval mode: a backward that recomputes layers would draw dropout, too."""
        super().train(mode)
        self.vlm.eval()
        return self

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.kl_coeff and self.reference is None:
            self.reference = ReferencePolicy(self.vlm, self.offload_reference)

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None and is_sharded(self.vlm):
            self.reference.shard()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if "rollout" not in batch:
            raise ValueError("trainer.callbacks: seen no rollouts, expected a ts_lightning.rl.RolloutCallback")
        for micro, rollout in zip(batch["micro_batches"], batch["rollout"], strict=True):
            rewards_BG = rollout.total.view(len(rollout.completions), -1)
            rollout.advantages = self.algorithm.advantages(rewards_BG).flatten() * rollout.emphasis
            micro["rollout"] = rollout
        return super().training_step(batch, batch_idx)

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        rollout = batch["rollout"]
        empty_NS = torch.zeros_like(rollout.old_logp_NS)
        return self.terms(batch, empty_NS, empty_NS).weight.sum()  # weights depend on lengths alone

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Each completion's terms; they are divided by the global batch's completions (or tokens)."""
        rollout = batch["rollout"]
        reference_NS = None
        if self.reference is not None:
            with self.reference.active() as package:
                scores = self.vlm.run(group_log_probs, batch, rollout.token_ids, rollout.temperature, package)
            reference_NS = scores.logp_NT
        scores = self.vlm.run(group_log_probs, batch, rollout.token_ids, rollout.temperature)
        terms = self.terms(batch, scores.logp_NT, rollout.old_logp_NS, reference_NS)
        entropy_N = scores.entropy_NT.sum(1) / rollout.mask_NS.sum(1).clamp(min=1)
        means = {"kl": terms.kl, "clipped": terms.clipped, "entropy": entropy_N}  # averaged as the loss is
        return {"loss": terms.loss} | {name: values_N * terms.weight for name, values_N in means.items()}

    def terms(self, batch: dict[str, Any], logp_NS: Tensor, old_NS: Tensor, ref_NS: Tensor | None = None) -> GRPOTerms:
        """The loss terms of a micro-batch's completions; those of padding rows are zero."""
        rollout = batch["rollout"]
        valid_N = batch["row_valid"].repeat_interleave(len(rollout.completions[0]))
        terms = self.algorithm.terms(
            logp_NS, old_NS, rollout.advantages, rollout.mask_NS, ref_NS, self.kl_coeff, rollout.max_tokens
        )
        return GRPOTerms(*(torch.where(valid_N, values_N, 0.0) for values_N in terms))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.reference is not None:
            checkpoint["reference"] = self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None and "reference" in checkpoint:
            self.reference.load_state_dict(checkpoint["reference"])
