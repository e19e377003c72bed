"""Floating-point operations of a training step by arithmetic: what the model needs, recomputation left out.

A product of [n, a] and [a, b] is 2 n a b; of element-wise work nothing counts, as usual. So does not the vision tower.
Legend: H hidden size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from ts_lightning.models.moe import MoE
from ts_lightning.models.quantization import QuantizedLinear


class StepFlops(NamedTuple):
    """Operations, forward and backward, of one real token, of one pair of a query and a key that it sees, of a logit.

    `token`: the decoder layers' products with the experts that answer a token; the gradient with respect to their input
    counts everywhere, that of a weight where it trains. `pair`: scores and their sum over values, in all layers.
    `logits`: the head's products at one position with a loss.
    """

    token: float
    pair: float
    logits: float

    def of_step(self, tokens: int, pairs: int, answers: int) -> float:
        """Of a step over so many tokens, pairs and positions with a loss."""
        return self.token * tokens + self.pair * pairs + self.logits * answers


def step_flops(vlm: Any) -> StepFlops:
    """What a vlm needs for a row that its package answers."""
    backbone, config = vlm.backbone, vlm.backbone.decoder.config
    chosen = getattr(config, "num_experts_per_tok", None)
    token = sum(
        2 * size * share * (3 if trains else 2)
        for layer in backbone.layers
        for size, trains, share in _weights(layer, chosen)
    )
    size_of_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 3 * 2 * 2 * len(backbone.layers) * config.num_attention_heads * size_of_head
    # not `head.weight`: where rows of tokens train, peft makes that anew, which sharded weights can't outside a forward
    head = next(backbone.head.parameters())
    return StepFlops(token, pair, 2 * head.numel() * (3 if head.requires_grad else 2))


def _weights(module: nn.Module, chosen: int | None, share: float = 1.0) -> Iterator[tuple[int, bool, float]]:
    """Of a module's matrices: size, whether it trains, the share of tokens that meet it; packed experts: [E, a, b]."""
    if isinstance(module, QuantizedLinear):  # its codes have another shape
        yield module.in_features * module.out_features, False, share
        return
    for weight in module.parameters(recurse=False):
        if weight.ndim >= 2:
            met = share * (chosen / len(weight) if chosen and weight.ndim == 3 else 1)
            yield weight.numel(), weight.requires_grad, met
    for child in module.children():
        answered = isinstance(module, MoE) and child is module.experts
        yield from _weights(child, chosen, share * module.top_k / len(child) if answered else share)  # type: ignore[arg-type, operator, union-attr]
