"""fp32 weights in the compute type, cast once a step in place of at every forward and backward.

A step of several micro-batches casts each expert's weights two or three times for each of them (forward, what is
computed again, backward). While copies are held that happens once; they take two bytes a trained parameter. Where
FSDP2 gathers weights in the compute type there is nothing to cast.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class _Copy(NamedTuple):
    source: Tensor
    version: int
    copy: Tensor


_held: dict[tuple[int, torch.dtype], _Copy] | None = None


def hold_copies(hold: bool) -> None:
    """Keep copies from now on, none yet; or drop them."""
    global _held
    _held = {} if hold else None


def working_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`: the copy that is held, where it is of these very values.

    It is not where its source was written to, or points to other memory, since the copy was made. A fused optimizer's
    step writes without a trace: copies have to be dropped before it.
    """
    if _held is None or tensor.dtype == dtype:
        return tensor.to(dtype)
    key = tensor.data_ptr(), dtype
    found = _held.get(key)
    if (
        found is not None
        and found.copy.shape == tensor.shape
        and found.source.data_ptr() == key[0]
        and found.version == found.source._version == tensor._version
    ):
        return found.copy
    copy = tensor.to(dtype)
    if tensor.requires_grad:  # a parameter itself, which lives on; in backward it may come as another object
        _held[key] = _Copy(tensor, tensor._version, copy)
    return copy
