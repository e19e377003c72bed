"""FSDP2: weights, gradients and optimizer states shared out between ranks, checkpoints as of one process."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from ts_lightning.models.sharding import clip_sharded, gathered, is_sharded, part_like, shard, whole_parameters
from ts_lightning.models.vlm import VLM


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over data-parallel ranks alone, with the checkpoints that DDP writes.

    Lightning's own takes one data-parallel group for each node, gathers the frozen base for every checkpoint and loads
    with its own format past the CheckpointIO. Here all ranks are one group, `BaseModule.configure_model` shards, and
    a checkpoint is one file of whole tensors, from rank 0: it loads under any strategy and number of ranks.

    exchange_once: of several micro-batches in a step the last one's backward alone exchanges gradients. Until then
    every rank holds those of all that trains whole, in fp32.
    """

    lightning_restore_optimizer = True  # type: ignore[assignment]  # by load_optimizer_state_dict

    def __init__(self, exchange_once: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.exchange_once, self.exchanges = exchange_once, True
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        super().setup_environment()
        names = ("data_parallel", "tensor_parallel")
        self.mesh = init_device_mesh(self.root_device.type, (self.world_size, 1), mesh_dim_names=names)

    def setup(self, trainer: L.Trainer) -> None:
        """Answers under `no_grad`: the buffers of a first forward in inference mode could never take gradients."""
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):  # fit's own is so already
            loop.inference_mode = False
        super().setup(trainer)

    @property
    def device_mesh(self) -> DeviceMesh:
        """All ranks in one data-parallel group, on one node or many."""
        assert self.mesh is not None
        return self.mesh

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """With `exchange_once` nothing is exchanged; else sharded gradients are: kept whole they take much memory."""
        vlm: Any = getattr(self.lightning_module, "vlm", None)
        self.exchanges = False
        if self.exchange_once:
            vlm.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.exchanges = True
            if self.exchange_once:
                vlm.set_requires_gradient_sync(True)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients that FSDP2 does not know of."""
        if self.exchanges:
            assert self.lightning_module is not None
            for parameter in whole_parameters(self.lightning_module):
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.world_size

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module packs what trained by itself (`package_state.pack`)."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: the module has loaded it (`package_state.unpack`)."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as of one process, on rank 0; empty tensors on others."""
        given = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = given.state_dict()
        per_parameter = {
            index: {key: gathered(value) if isinstance(value, Tensor) else value for key, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": per_parameter}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            per_parameter = {
                index: {key: _part(value, parameters[index]) for key, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": per_parameter})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)


class ShardedModule(L.LightningModule):
    """What FSDP2 asks of a LightningModule; under any other strategy it is Lightning's own."""

    vlm: VLM

    def configure_model(self) -> None:
        """Where the strategy is FSDP2: share out the weights, after `setup` has given them their dtypes."""
        if isinstance(self.trainer.strategy, FSDP2Strategy) and not is_sharded(self.vlm):
            compute = torch.bfloat16 if str(self.trainer.precision) == "bf16-mixed" else None
            shard(self.vlm, self.vlm.backbone.layers, self.trainer.strategy.device_mesh["data_parallel"], compute)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val and is_sharded(self.vlm):
            clip_sharded(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def _part(value: Any, parameter: Tensor) -> Any:
    same = isinstance(value, Tensor) and value.shape == parameter.shape  # not the number of steps
    return part_like(value, parameter) if same else value
