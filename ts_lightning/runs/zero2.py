"""DeepSpeed ZeRO-2: gradients and optimizer states shared out between ranks, checkpoints as of one process."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor
from torch.nn import Parameter


class ZeRO2Strategy(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy at stage 2, with the checkpoints that DDP writes.

    DeepSpeed saves a folder of pickles past the CheckpointIO, which neither `load` nor resuming can read. Here a
    checkpoint is one file: fp32 weights of what trained, without the frozen base, and the optimizer's state, both
    consolidated on rank 0. It loads under any strategy and number of ranks. ValueError for offload: DeepSpeed then
    takes its own optimizers alone, and keeps no gradients that a step with NaN could be known by.
    """

    lightning_restore_optimizer = True  # type: ignore[assignment]  # by load_optimizer_state_dict

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("offload_optimizer"):
            raise ValueError("trainer.strategy: seen offload_optimizer, expected none (try -c trainer/adamw_8bit.yaml)")
        super().__init__(stage=2, exclude_frozen_parameters=True, **kwargs)
        self.groups: list[list[Parameter]] = []  # the optimizer's, before DeepSpeed flattens them

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        self.groups = [list(group["params"]) for group in optimizer.param_groups]
        scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        for parameter in scalars:  # alpha, the same on all ranks: DeepSpeed fails on sending a scalar as bytes
            parameter.ds_optim_param = None  # its mark for what it must not send
        made = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        for parameter in scalars:
            del parameter.ds_optim_param
        return made

    def block_backward_sync(self) -> NoReturn:  # type: ignore[override]
        """Refused: of several backward passes before a step DeepSpeed 0.19 loses gradients."""
        raise ValueError(
            "data.micro_batch_size: seen several micro-batches in a step under DeepSpeed, expected one "
            "(micro_batch_size = global_batch_size / ranks; FSDP2 takes several)"
        )

    def gradients(self) -> list[Tensor]:
        """This rank's part of the gradients, between backward and step: parameters have none here."""
        groups = self.optimizers[0].averaged_gradients.values()  # type: ignore[attr-defined]
        return [gradient for group in groups for gradient in group or []]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module packs what trained by itself (`package_state.pack`)."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._trained():
            checkpoint["state_dict"][name] = self._on_rank_zero(safe_get_full_fp32_param(parameter))
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """The fp32 weights of the optimizer; the module has loaded its own (`package_state.unpack`)."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._trained():
            safe_set_full_fp32_param(parameter, checkpoint["state_dict"][name].to(parameter.device))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state as of one process, on rank 0; empty tensors on others."""
        from deepspeed.utils import safe_get_full_optimizer_state

        _link(optimizer)
        inner: Any = _zero(optimizer).optimizer
        state: dict[int, dict[str, Any]] = {}
        param_groups = []
        for group, flat in zip(self.groups, inner.param_groups, strict=True):
            own = inner.state.get(flat["params"][0], {})
            numbers = range(len(state), len(state) + len(group))
            for number, parameter in zip(numbers, group, strict=True):
                state[number] = dict(own)
                for key in [key for key, value in own.items() if _of_weights(key, value)]:
                    state[number][key] = self._on_rank_zero(safe_get_full_optimizer_state(parameter, key))
            param_groups.append({**flat, "params": list(numbers)})
        return {"state": state, "param_groups": param_groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        (optimizer,), (stored,) = self.optimizers, checkpoint["optimizer_states"]
        inner: Any = _zero(optimizer).optimizer
        for flat, saved in zip(inner.param_groups, stored["param_groups"], strict=True):
            flat.update({key: value for key, value in saved.items() if key != "params"})
            (partition,) = flat["params"]
            inner.state[partition] = {
                key: torch.zeros_like(partition) if _of_weights(key, value) else value
                for key, value in stored["state"].get(saved["params"][0], {}).items()
            }
        _link(optimizer)
        for group, saved in zip(self.groups, stored["param_groups"], strict=True):
            for number, parameter in zip(saved["params"], group, strict=True):
                for key, value in stored["state"].get(number, {}).items():
                    if _of_weights(key, value):
                        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    def _trained(self) -> list[tuple[str, Parameter]]:
        assert self.lightning_module is not None
        return [(name, p) for name, p in self.lightning_module.named_parameters() if p.requires_grad]

    def _on_rank_zero(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.is_global_zero else tensor.new_empty(0, device="cpu")


def _zero(optimizer: Any) -> Any:
    """DeepSpeed's optimizer; its `optimizer` is torch's, over flat partitions."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _of_weights(key: str, value: Any) -> bool:
    """Whether an optimizer keeps this state for every weight; the number of steps is one for all."""
    return isinstance(value, Tensor) and key != "step"


def _link(optimizer: Any) -> None:
    """Let DeepSpeed see every group's state: by itself it looks once, when only the first group has made a step."""
    _zero(optimizer)._hp_optimizer_states_linked = False
    _zero(optimizer)._lazy_init_hp_params_optimizer_state()
