"""Which kernel a decoder's attention runs: SDPA with dense masks, or FlexAttention with block masks.

A block mask says which blocks of 128 x 128 positions nobody sees: packed rows of many branches skip most of them, and
grouped keys and values are not copied. Legend: B rows, N heads, Q queries, K keys, D size of a head.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CHOICES = ("auto", "sdpa", "flex", "flash")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    flash: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Attention as transformers calls it: [B, N, Q, D] and its keys and values to [B, Q, N, D].

    A `BlockMask` runs FlexAttention, compiled on a GPU and plain on a CPU; any other mask, or none, SDPA. With `flash`
    what has no mask runs SDPA's flash kernel or nothing.
    """
    if isinstance(attention_mask, BlockMask):
        if query.is_cuda:
            return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
        grouped, scale = query.shape[1] != key.shape[1], kwargs.get("scaling")
        try:
            out_BNQD: Any = flex_attention(
                query, key, value, block_mask=attention_mask, scale=scale, enable_gqa=grouped
            )
        except NotImplementedError:
            raise ValueError("attention: seen 'flex' for training on a CPU, expected 'auto' or 'sdpa'") from None
        return out_BNQD.transpose(1, 2).contiguous(), None
    if flash and attention_mask is None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


_NAMES = {choice: "ts_sdpa_strict" if choice == "flash" else "ts_sdpa" for choice in CHOICES}  # "sdpa": it is checked
for _choice, _name in _NAMES.items():
    AttentionInterface.register(_name, partial(attend, flash=_choice == "flash"))
    AttentionMaskInterface.register(_name, sdpa_mask)


def use_attention(decoder: Any, choice: str) -> str:
    """Make a decoder of transformers take block masks, and return the choice that holds.

    "auto" leaves a decoder without SDPA as it is, and returns "sdpa". ValueError for an unknown choice, and for others
    with such a decoder.
    """
    if choice not in CHOICES:
        raise ValueError(f"attention: seen {choice!r}, expected one of {', '.join(CHOICES)}")
    if choice == "sdpa":
        return choice
    try:
        decoder.set_attn_implementation(_NAMES[choice])
    except ValueError as error:
        if choice != "auto":
            raise ValueError(f"attention: seen {choice!r} for {type(decoder).__name__}, expected 'sdpa'") from error
        return "sdpa"
    return choice


def takes_blocks(choice: str, device: torch.device) -> bool:
    """Whether masks are to be block masks; by "auto" where FlexAttention is compiled."""
    return choice in ("flex", "flash") or (choice == "auto" and device.type == "cuda")


def block_masks(mask: Any) -> Any:
    """A decoder's masks (of each kind of layer, where it is a dict) with dense [B, 1, Q, K] ones as block masks."""
    if isinstance(mask, dict):
        return {kind: block_masks(one) for kind, one in mask.items()}
    if not torch.is_tensor(mask) or mask.ndim != 4:
        return mask

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask[b, 0, q, k]

    batch, _, queries, keys = mask.shape
    return create_block_mask(seen, batch, None, queries, keys, device=mask.device)
