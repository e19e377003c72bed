"""A vlm whose weights are shared out between ranks (FSDP2): its shards, norms of gradients, whole tensors for files."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ts_lightning.models.quantization import QuantizedLinear
from ts_lightning.models.ranks import rank, several


def shard(vlm: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Give each rank its part of every parameter: one group for each decoder layer, one for all the rest.

    The rest (vision tower, embedding, head, rows of tokens) is gathered for the length of a forward and a backward of
    the vlm: a rank without pictures must not keep others waiting, and the head runs as often as a rank has tokens.
    Scalars (alpha) have nothing to share out: they stay whole, see `whole_parameters`. Files and gradients of zero rely
    on every weight being a part again once a forward ends, so the root group is no exception. They are gathered in the
    type `compute` (None: as they are stored); their gradients are averaged in fp32.
    """
    if any(isinstance(module, QuantizedLinear) for module in vlm.modules()):
        raise ValueError("quantization: seen quantised weights under FSDP2, expected DDP, one device, or null")
    kept = set(whole_parameters(vlm))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, vlm):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept, mp_policy=policy)
    register_fsdp_forward_method(vlm, "run")


def is_sharded(module: object) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(module, FSDPModule)


@contextmanager
def kept_whole(vlm: nn.Module) -> Iterator[None]:
    """While this is open, a layer whose weights were gathered for a forward keeps them; then they are given back.

    For generation, inside `VLM.run`: weights are gathered once, not for every token.
    """
    layers = [module for module in vlm.modules() if isinstance(module, FSDPModule) and module is not vlm]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()


def whole_parameters(vlm: nn.Module) -> list[nn.Parameter]:
    """The parameters that every rank holds whole; nobody averages their gradients but the strategy."""
    return [parameter for parameter in vlm.parameters() if parameter.ndim == 0]


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, in rank 0's main memory; the others take part and get an empty one.

    Any other tensor is returned as it is. Every rank has to call it.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor().detach()
    return full.cpu() if rank() == 0 else full.new_empty(0, device="cpu")


def part_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, sharded as `parameter` is; the tensor itself if that is not."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    return distribute_tensor(whole.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The memory of this rank's part."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def all_ranks_done(done_N: Tensor) -> bool:
    """Whether every completion of every rank has ended: forwards of sharded weights wait for each other."""
    done = done_N.all()
    if several():
        flag = done.to(torch.int32)
        distributed.all_reduce(flag, distributed.ReduceOp.MIN)
        done = flag.bool()
    return bool(done)


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, a scalar; of sharded ones the norm over all ranks."""
    kinds: dict[bool, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(isinstance(gradient, DTensor), []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(kind) for kind in kinds.values()]  # torch mixes no whole and sharded ones
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if len(whole) > 1 else whole[0] if whole else torch.zeros(())


def clip_sharded(optimizer: Optimizer, limit: float, algorithm: str) -> None:
    """Lightning's clipping, by "norm" or "value", where some gradients are sharded and some are whole."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    parts = [local(gradient) for gradient in gradients]
    if not parts:  # a step that is skipped
        return
    if algorithm == "value":
        for part in parts:
            part.clamp_(-limit, limit)
    else:
        factor = (limit / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for part in parts:
            part.mul_(factor)
