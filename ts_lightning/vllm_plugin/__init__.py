"""Packages of twin experts inside vLLM: what the entry point `vllm.general_plugins` calls in each of its processes.

vLLM's environment need not have what the rest of ts_lightning asks for: torch, safetensors and vLLM are all that is
imported here. A package is addressed as a LoRA adapter is, by a model name: `--enable-lora --enforce-eager
--lora-modules grounding=FOLDER --additional-config '{"ts_lightning_packages": ["FOLDER"]}'`.
"""

from functools import wraps
from typing import Any


def register() -> None:
    """Let vLLM's adapter manager hold packages: twins beside the MLPs of its model, package folders as adapters."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.peft_helper import PEFTHelper

    from ts_lightning.vllm_plugin.folders import is_package
    from ts_lightning.vllm_plugin.twins import add_twins, as_adapter

    if hasattr(LoRAModelManager.__init__, "__wrapped__"):
        return  # vLLM calls plugins more than once
    make, settings, load = LoRAModelManager.__init__, PEFTHelper.from_local_dir, LoRAModel.from_local_checkpoint

    @wraps(make)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        add_twins(self, kwargs["vllm_config"] if "vllm_config" in kwargs else args[-1])

    def settings_of(folder: str, *args: Any, **kwargs: Any) -> Any:
        if is_package(folder):
            return PEFTHelper(r=1, lora_alpha=1, target_modules=[])
        return settings(folder, *args, **kwargs)

    def loaded(folder: str, *args: Any, **kwargs: Any) -> Any:
        if is_package(folder):
            return as_adapter(folder, kwargs["lora_model_id"])
        return load(folder, *args, **kwargs)

    LoRAModelManager.__init__ = made
    _leave_the_base_alone()
    PEFTHelper.from_local_dir = settings_of
    LoRAModel.from_local_checkpoint = loaded


def _leave_the_base_alone() -> None:
    """On CPUs, vLLM 0.32 lets the adapter of the last slot answer for tokens that have none, where a batch has both.

    Its operators take the index -1 of such a token as Python does. Here their low-rank product is zero.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink = lora_ops.bgmv_shrink

    @wraps(shrink)
    def shrunk(x: Any, weights: Any, out: Any, indices: Any, *args: Any, **kwargs: Any) -> None:
        shrink(x, weights, out, indices, *args, **kwargs)
        out[: len(indices)].masked_fill_((indices < 0)[: len(out), None], 0)

    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = shrunk
