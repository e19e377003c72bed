"""Whole GRPO steps on the CPU: the tiny decoder at H = 768 with 3 layers and plain MLPs, two of which train."""

import copy
from typing import Any

import torch
from torch import Tensor

from tools.bench.grpo_case import Case, prompt_batch
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.moe import MoE
from ts_lightning.rl.reference import ReferencePolicy
from ts_lightning.rl.rollout import Rollout
from ts_lightning.training import GRPO

GROUP, PROMPT, COMPLETION, KL = 8, 600, 60, 0.04
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 3, "num_heads": 12}
TRAIN = ("*language_model.layers.0.mlp*", "*language_model.layers.2.mlp*")
WORD = " red"


def make_vlm() -> PlainVLM:
    """The policy, the same weights each time; its end mark is a token that is never drawn: completions are full."""
    backbone = TinyBackbone(pretrained=None, **SIZES)  # type: ignore[arg-type]
    for layer in backbone.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp = layer.mlp.experts[0]
    backbone.encoder.tokenizer.eos_token = backbone.encoder.image_token
    return PlainVLM(backbone, train=list(TRAIN)).eval()


def make_batch(vlm: PlainVLM, prompt: int = PROMPT, pictures: int = 0) -> dict[str, Any]:
    """One prompt of so many tokens, pictures included."""
    encoder = vlm.backbone.encoder
    ids = [vlm.backbone.image_token_id] * (encoder.image_tokens * pictures)
    ids += encoder.tokenizer(WORD * (prompt - len(ids)), add_special_tokens=False)["input_ids"]
    assert len(ids) == prompt, "the word is one token"
    pixels = torch.randint(0, 256, (pictures, 3, encoder.image_size, encoder.image_size), dtype=torch.uint8)
    return prompt_batch(torch.tensor(ids), pixels)


class StepCase(Case):
    """Rollout, reference, forward, backward, AdamW: what `GRPO` does in one step, with a reward of no cost.

    The reference is a copy of what trains, or with `second_model` a whole model of its own, as trainers without
    `ReferencePolicy` keep it.
    """

    def __init__(self, prompt: int, completion: int, pictures: int = 0, second_model: bool = False) -> None:
        vlm = make_vlm()
        tokens_NS = torch.randint(100, 400, (GROUP, completion), generator=torch.Generator().manual_seed(0))
        super().__init__(vlm, make_batch(vlm, prompt, pictures), tokens_NS)
        self.module = GRPO(vlm, kl_coeff=KL)
        self.second = copy.deepcopy(vlm).requires_grad_(False) if second_model else None
        self.reference = None if second_model else ReferencePolicy(vlm)
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-6)

    def reference_log_probs(self, shared: bool, tokens_NS: Tensor) -> Tensor:
        """[N, S] under the policy that training began with."""
        if self.reference is not None:
            with self.reference.active():
                return self.score(shared, tokens_NS)
        with torch.no_grad():
            return self.score(shared, tokens_NS, self.second)

    def whole(self, shared: bool) -> None:
        """One step."""
        sampled = self.roll_out(shared, self.completion)
        tokens_NS = torch.tensor([t for group in sampled.tokens for t in group])
        reference_NS = self.reference_log_probs(shared, tokens_NS)
        advantages = torch.linspace(-1, 1, GROUP)
        mask_NS = torch.ones_like(sampled.logp_NS, dtype=torch.bool)
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
        logp_NS = self.score(shared, tokens_NS)
        terms = self.module.terms(self.batch, logp_NS, rollout.old_logp_NS, reference_NS)
        (terms.loss.sum() / terms.weight.sum()).backward()
        self.optimizer.step()
