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

from ts_lightning.models.packing import branch_mask

CHOICES = ("auto", "sdpa", "flex", "flash")
UNFOLDED = {"softcap", "position_bias", "cache"}  # what transformers' function does with them is its own
Sections = list[list[Tensor]]


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
    what has no mask runs SDPA's flash kernel or nothing. With `sections` (of that function) each runs on its own. In
    decoding, grouped keys and values are read where they are: see `_folded`.
    """
    if (parts := kwargs.pop("sections", None)) is not None:
        return _by_section(module, query, key, value, parts, **kwargs), None
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
    if _folds(query, key, attention_mask) and not UNFOLDED & {name for name, x in kwargs.items() if x is not None}:
        return _folded(query, key, value, attention_mask, kwargs.get("scaling"), kwargs.get("dropout", 0.0)), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _folds(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether these are grouped heads in decoding (fewer queries than keys) under a mask that all heads share."""
    queries = query.shape[2]
    shared = queries == 1 if mask is None else mask.ndim == 4 and mask.shape[1] == 1
    return query.shape[1] > key.shape[1] and queries < key.shape[2] and shared


def _folded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """[B, Q, N, D]: the heads that share keys stand behind each other as queries, so that no key or value is copied.

    What is copied is their mask, which is small as long as the queries are few.
    """
    rows, heads, queries, size = query.shape
    if mask is not None and queries > 1:
        mask = mask.repeat(1, 1, heads // key.shape[1], 1)
    folded = query.reshape(rows, key.shape[1], -1, size)
    out = nn.functional.scaled_dot_product_attention(folded, key, value, mask, dropout, scale=scale)
    return out.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous()


def _by_section(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, parts: "Sections", **kwargs: Any
) -> Tensor:
    rows = []
    for b, row in enumerate(parts):
        done, start = [], 0
        for mask_11TT in row:
            own = slice(start, start := start + mask_11TT.shape[-1])
            q, k, v = (x[b : b + 1, :, own] for x in (query, key, value))
            done.append(sdpa_attention_forward(module, q, k, v, mask_11TT, **kwargs)[0])
        done.append(query.new_zeros(1, query.shape[2] - start, query.shape[1], value.shape[-1]))
        rows.append(torch.cat(done, 1))
    return torch.cat(rows)


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


def sections(branch_ABT: Tensor, record_BT: Tensor) -> Sections:
    """For each row the dense masks [1, 1, T, T] of its records, one behind the other; what is left is padding."""
    found: Sections = []
    for b, record_T in enumerate(record_BT):
        lengths = torch.bincount(record_T.clamp(min=0))[1:].tolist()
        parts = branch_ABT[:, b : b + 1].split([*lengths, len(record_T) - sum(lengths)], -1)[:-1]
        found.append([branch_mask(part) for part in parts])
    return found
