"""One prompt and its group of completions, with the prompt read once or repeated for each completion.

Legend: N completions, S steps.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tools.bench.harness import relative_error
from ts_lightning.models.generate import banned_tokens
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import group_log_probs, tempered
from ts_lightning.rl.sampling import Sampled, sample_groups


def prompt_batch(input_ids_T: Tensor, pixel_values: Tensor, name: str = "0") -> dict[str, Any]:
    """A batch of one prompt on the device of its tokens."""
    ids_1T = input_ids_T[None]
    return {
        "input_ids": ids_1T,
        "valid": torch.ones_like(ids_1T, dtype=torch.bool),
        "position_ids": torch.arange(ids_1T.shape[1], device=ids_1T.device)[None],
        "step_ids": torch.full_like(ids_1T, -1),
        "pixel_values": pixel_values,
        "task": ids_1T.new_ones(1),
        "row_valid": torch.ones_like(ids_1T[:, 0], dtype=torch.bool),
        "samples": [SimpleNamespace(id=name, where=f"bench:{name}")],
    }


def repeat(batch: Mapping[str, Any], group: int) -> dict[str, Any]:
    """The prompt once for each completion, as trainers without a shared prefix have it."""
    made = {k: v.repeat_interleave(group, 0) for k, v in batch.items() if isinstance(v, Tensor) and k != "pixel_values"}
    names = [SimpleNamespace(id=str(i), where=f"bench:{i}") for i in range(group)]
    return {**made, "pixel_values": torch.cat([batch["pixel_values"]] * group), "samples": names}


def repeated_log_probs(vlm: VLM, batch: Mapping[str, Any], tokens_NS: Tensor) -> Tensor:
    """[N, S] from prompts repeated for each completion, without a mask; logits at the completions alone."""
    rows = repeat(batch, len(tokens_NS))
    ids = torch.cat([rows["input_ids"], tokens_NS], 1)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    rows |= {"input_ids": ids, "valid": torch.ones_like(ids, dtype=torch.bool), "position_ids": positions}
    with vlm.routing(rows) as context:
        hidden_NTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(rows, context), position_ids=rows["position_ids"], use_cache=False
        ).last_hidden_state
    steps = tokens_NS.shape[1]
    logits_KV = vlm.logits(hidden_NTH[:, -steps - 1 : -1].flatten(0, 1), rows["task"].repeat_interleave(steps), context)
    logp_KV = tempered(logits_KV, 1.0, banned_tokens(vlm))
    return logp_KV.gather(1, tokens_NS.reshape(-1, 1)).view(tokens_NS.shape)


class Case:
    """Rollouts and updates of one prompt with the prefix shared, or not; `tokens_NS` is what an update scores."""

    def __init__(self, vlm: VLM, batch: dict[str, Any], tokens_NS: Tensor) -> None:
        self.vlm, self.batch, self.tokens_NS = vlm, batch, tokens_NS
        self.group, self.completion = tokens_NS.shape
        self.repeated = repeat(batch, self.group)
        self.trainable = [p for p in vlm.parameters() if p.requires_grad]

    def roll_out(self, shared: bool, steps: int, number: int = 0, cuda_graph: bool = False) -> Sampled:
        """Draw the group's completions of so many tokens; another `number` draws others."""
        batch, group = (self.batch, self.group) if shared else (self.repeated, 1)
        return sample_groups(self.vlm, batch, group, steps, stop_after=None, step=number, cuda_graph=cuda_graph)

    def score(self, shared: bool, tokens: Sequence[Sequence[int]], vlm: VLM | None = None) -> Tensor:
        """[N, S] log-probabilities of completions under the policy, or under another vlm."""
        vlm = vlm or self.vlm
        if shared:
            return group_log_probs(vlm, self.batch, [tokens], watched=torch.is_grad_enabled()).logp_NT
        return repeated_log_probs(vlm, self.batch, torch.tensor(tokens, device=self.tokens_NS.device))

    def update(self, shared: bool) -> Tensor:
        """Forward and backward of the policy on given completions; their log-probabilities [N, S]."""
        self.vlm.zero_grad()
        logp_NS = self.score(shared, self.tokens_NS.tolist())
        weights_N1 = torch.linspace(-1, 1, self.group, device=logp_NS.device)[:, None]
        (logp_NS * weights_N1).mean().backward()
        return logp_NS.detach()

    def errors(self) -> dict[str, float]:
        """Relative errors between both forms: of log-probabilities about their mean, of all gradients, of the worst.

        Where rounding sends a token to another expert, its gradient differs much, all of them together little.
        """
        found = []
        for shared in (True, False):
            logp_NS = self.update(shared)
            found.append((logp_NS - logp_NS.mean(), [p.grad for p in self.trainable if p.grad is not None]))
        self.vlm.zero_grad()
        (ours_NS, ours), (theirs_NS, theirs) = found
        squares = torch.tensor(
            [[_square(a.double() - b), _square(b)] for a, b in zip(ours, theirs, strict=True)], dtype=torch.float64
        )
        wrong, right = squares.sum(0).tolist()
        return {
            "log_probs": relative_error(ours_NS, theirs_NS),
            "gradients": (wrong / right) ** 0.5,
            "worst_gradient": (squares[:, 0] / squares[:, 1].clamp_min(1e-60)).max().sqrt().item(),
        }


def _square(values: Tensor) -> float:
    return values.double().square().sum().item()
