"""MIRG-RL's second stage: GRPO. Shapes: N completions, G of one prompt, S steps."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ts_lightning.losses import LOSS_TYPES, RATIOS, GRPOTerms, grpo_terms
from ts_lightning.models.sharding import is_sharded
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import group_log_probs
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.training.base import BaseModule
from ts_lightning.training.schedule import WarmupCosine


class GRPO(BaseModule):
    """MIRG-RL eq. 5, J = 1/N sum_i [pi(o_i) / pi_old(o_i) A_i - lambda KL(pi || pi_ref)], by `ts_lightning.losses`.

    The completions o_i are those that `ts_lightning.rl.RolloutCallback` puts into the batch.

    The data's global batch counts prompts; 16 prompts of 8 completions are the paper's 128. Each group is one forward
    and one backward, with its prompt in it once. Dropout is off, and experts are chosen as in evaluation: policy,
    reference and rollout run the same form.

    Args:
        vlm: The policy; what trains is its own business.
        optimizer: As in `SFT`.
        lr_scheduler: As in `SFT`.
        alpha_lr_factor: As in `SFT`.
        max_new_tokens: Of validation; rollouts have their own.
        loss_type: "paper", or grpo, dr_grpo, dapo, bnpo (`ts_lightning.losses.grpo_terms`).
        ratio: "sequence" (as printed) or "token".
        clip_eps: Of the ratio; None is no clipping, as printed.
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
        loss_type: str = "paper",
        ratio: str = "sequence",
        clip_eps: float | None = None,
        kl_coeff: float = 0.04,
        offload_reference: bool = False,
    ) -> None:
        for name, value, known in (("loss_type", loss_type, LOSS_TYPES), ("ratio", ratio, RATIOS)):
            if value not in known:
                raise ValueError(f"{name}: seen {value!r}, expected one of {', '.join(known)}")
        if kl_coeff < 0:
            raise ValueError(f"kl_coeff: seen {kl_coeff}, expected at least 0")
        super().__init__(vlm, optimizer, lr_scheduler, alpha_lr_factor, max_new_tokens)
        self.loss_type, self.ratio, self.clip_eps = loss_type, ratio, clip_eps
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
            micro["rollout"] = rollout
        return super().training_step(batch, batch_idx)

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        rollout = batch["rollout"]
        empty_NS = torch.zeros_like(rollout.old_logp_NS)
        return self.terms(batch, empty_NS, empty_NS).weight.sum()

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
        tokens_N = rollout.mask_NS.sum(1).clamp(min=1)
        share_N = terms.weight if self.loss_type in ("dapo", "bnpo") else torch.ones_like(terms.weight)
        parts = {"loss": terms.loss, "kl": terms.kl, "clipped": terms.clipped * share_N}
        return parts | {"entropy": scores.entropy_NT.sum(1) / tokens_N * share_N}

    def terms(self, batch: dict[str, Any], logp_NS: Tensor, old_NS: Tensor, ref_NS: Tensor | None = None) -> GRPOTerms:
        """The loss terms of a micro-batch's completions; those of padding rows are zero."""
        rollout = batch["rollout"]
        valid_N = batch["row_valid"].repeat_interleave(len(rollout.completions[0]))
        terms = grpo_terms(
            logp_NS,
            old_NS,
            rollout.advantages,
            rollout.mask_NS,
            ref_NS,
            self.kl_coeff,
            self.loss_type,
            self.ratio,
            self.clip_eps,
            rollout.max_tokens,
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
