"""Whole GRPO steps on the CPU: the tiny decoder at H = 768 with 3 layers and plain MLPs, two of which train."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from tools.bench.grpo_case import Case, prompt_batch
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.moe import MoE
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rollout import Rollout
from ts_lightning.training import GRPO

GROUP, PROMPT, COMPLETION, KL = 8, 600, 60, 0.04
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 3, "num_heads": 12, "image_size": 256}
TRAIN = ("*language_model.layers.0.mlp*", "*language_model.layers.2.mlp*")
WORD = " red"


class EndingVLM(PlainVLM):
    """A vlm of random weights whose answers end by themselves, after `mean_length` tokens (None: never)."""

    mean_length: int | None = None

    def logits(self, hidden_NH: Tensor, task_N: Tensor, context: Any) -> Tensor:
        logits_NV = super().logits(hidden_NH, task_N, context)
        if self.mean_length is None:
            return logits_NV
        ends = torch.tensor([self.tokenizer.eos_token_id])
        return logits_NV.index_add(1, ends, torch.full((len(logits_NV), 1), end_bias(self, self.mean_length)))


def end_bias(vlm: PlainVLM, mean_length: int) -> float:
    """What is added to the logit of the end mark, where all tokens are about as likely as each other."""
    return math.log(len(vlm.backbone.embedding.weight) / mean_length)


def make_vlm(mean_length: int | None = None) -> EndingVLM:
    """The policy, the same weights each time; without `mean_length` its end mark is never drawn: completions are full.

    A picture is 256 tokens.
    """
    backbone = TinyBackbone(pretrained=None, **SIZES)  # type: ignore[arg-type]
    for layer in backbone.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp = layer.mlp.experts[0]
    if mean_length is None:
        backbone.encoder.tokenizer.eos_token = backbone.encoder.image_token
    vlm = EndingVLM(backbone, train=list(TRAIN)).eval()
    vlm.mean_length = mean_length
    return vlm


def make_batch(vlm: VLM, prompt: int = PROMPT, pictures: int = 0, name: str = "0") -> dict[str, Any]:
    """One prompt of so many tokens, pictures included."""
    encoder = vlm.backbone.encoder
    ids = [vlm.backbone.image_token_id] * (encoder.image_tokens * pictures)
    ids += encoder.tokenizer(WORD * (prompt - len(ids)), add_special_tokens=False)["input_ids"]
    assert len(ids) == prompt, "the word is one token"
    pixels = torch.randint(0, 256, (pictures, 3, encoder.image_size, encoder.image_size), dtype=torch.uint8)
    return prompt_batch(torch.tensor(ids), pixels, name)


class StepCase(Case):
    """Rollout, reference, forward, backward, AdamW: what `GRPO` does in one step, with a reward of no cost.

    The reference is a copy of what trains, or with `second_model` a whole model of its own, as trainers without
    `ReferencePolicy` keep it.
    """

    def __init__(
        self,
        prompt: int,
        completion: int,
        pictures: int = 0,
        second_model: bool = False,
        mean_length: int | None = None,
    ) -> None:
        vlm = make_vlm(mean_length)
        tokens_NS = torch.randint(100, 400, (GROUP, completion), generator=torch.Generator().manual_seed(0))
        super().__init__(vlm, make_batch(vlm, prompt, pictures), tokens_NS)
        self.module = GRPO(vlm, kl_coeff=KL)
        self.second = copy.deepcopy(vlm).requires_grad_(False) if second_model else None
        self.reference = None if second_model else ReferencePolicy(vlm)
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-6)
        self.mean_lengths: list[float] = []  # of the completions of every whole step

    def reference_log_probs(self, shared: bool, tokens: list[list[int]]) -> Tensor:
        """[N, S] under the policy that training began with."""
        if self.reference is not None:
            with self.reference.active():
                return self.score(shared, tokens)
        with torch.no_grad():
            return self.score(shared, tokens, self.second)

    def whole(self, shared: bool) -> None:
        """One step; without a shared prefix all completions have to be full."""
        if shared:
            self.batch |= self.vlm.frozen_features(self.batch)
        sampled = self.roll_out(shared, self.completion, len(self.mean_lengths))
        tokens = [t for group in sampled.tokens for t in group]
        self.mean_lengths.append(sum(map(len, tokens)) / len(tokens))
        reference_NS = self.reference_log_probs(shared, tokens)
        advantages = torch.linspace(-1, 1, GROUP)
        lengths = torch.tensor([len(t) for t in tokens])
        mask_NS = torch.arange(int(lengths.max())) < lengths[:, None]
        self.batch["rollout"] = rollout = Rollout(
            ["0"],
            [[None] * GROUP],  # type: ignore[list-item]
            sampled.logp_NS,
            mask_NS,
            {},
            advantages,
            advantages,
            torch.ones(GROUP),
            1.0,
            self.completion,
        )
        self.optimizer.zero_grad(set_to_none=True)
        logp_NS = self.score(shared, tokens)
        terms = self.module.terms(self.batch, logp_NS, rollout.old_logp_NS, reference_NS)
        (terms.loss.sum() / terms.weight.sum()).backward()
        self.optimizer.step()
        self.batch.pop("features", None)
