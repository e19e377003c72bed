"""Phi's attention in decoding, with few calls. Legend: B rows, Q tokens, N heads, D size of a head, R of it turned."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.phi.modeling_phi import PhiAttention

from ts_lightning.models.routing import current_routing


class DecodingPhiAttention(PhiAttention):
    """transformers' own forward but in a decoding step: there one product makes queries, keys and values.

    Small models wait for the calls of a step, not for its arithmetic.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `PhiAttention.forward`."""
        context, parts = current_routing(), (self.q_proj, self.k_proj, self.v_proj)
        plain = all(type(part) is nn.Linear for part in parts) and self.k_proj.out_features == self.q_proj.out_features
        if context is None or context.kept is None or not plain or self.qk_layernorm:
            kwargs |= {"attention_mask": attention_mask, "past_key_values": past_key_values}
            return super().forward(hidden_states, position_embeddings=position_embeddings, **kwargs)
        if self not in context.kept:
            weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
            context.kept[self] = weight, bias
        rows, tokens, _ = hidden_states.shape
        states_B3NQD = F.linear(hidden_states, *context.kept[self]).view(rows, tokens, 3, -1, self.head_dim)
        states_B3NQD = states_B3NQD.permute(0, 2, 3, 1, 4)
        turned_B2NQD = turned(states_B3NQD[:, :2], *position_embeddings)
        query, key = turned_B2NQD.unbind(1)
        key, value = past_key_values.update(key, states_B3NQD[:, 2], self.layer_idx)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=self.scaling)
        return self.dense(out.transpose(1, 2).flatten(2)), None


def turned(states: Tensor, cos_BQR: Tensor, sin_BQR: Tensor) -> Tensor:
    """Rotary positions on the first R of [B, 2, N, Q, D]: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    half = cos_BQR.shape[-1] // 2
    a, b, rest = states.split([half, half, states.shape[-1] - 2 * half], -1)
    cos, sin = (x[:, None, None, :, :half] for x in (cos_BQR, sin_BQR))
    return torch.cat([(a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin), rest], -1)


def install(layers: Iterable[nn.Module]) -> None:
    """Give Phi's decoder layers this attention, in place: names of weights stay."""
    for layer in layers:
        attention: Any = layer.self_attn
        if type(attention) is PhiAttention:
            attention.__class__ = DecodingPhiAttention
