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


class WorkingCopies:
    """Copies of parameters, made when they are first asked for.

    A fused optimizer's step writes without a trace: they have to be dropped before it.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype], _Copy] = {}

    def of(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`: the copy that is held, where it is of these very values.

        It is not where its source was written to, or points to other memory, since the copy was made.
        """
        if tensor.dtype == dtype:
            return tensor
        key = tensor.data_ptr(), dtype
        found = self._held.get(key)
        if (
            found is not None
            and found.copy.shape == tensor.shape
            and found.source.data_ptr() == key[0]
            and found.version == found.source._version == tensor._version
        ):
            return found.copy
        copy = tensor.to(dtype)
        if tensor.requires_grad:  # a parameter itself, which lives on; in backward it may come as another object
            self._held[key] = _Copy(tensor, tensor._version, copy)
        return copy
