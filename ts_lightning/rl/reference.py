"""The policy that GRPO started from, without a second model."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ts_lightning.models.backbones.base import tensor_bytes
from ts_lightning.models.lora import LoRAVLM
from ts_lightning.models.package import load_weights
from ts_lightning.models.sharding import gathered, is_sharded, local, part_like
from ts_lightning.models.twin_vlm import TwinExpertVLM
from ts_lightning.models.vlm import VLM

REFERENCE = "reference"


class ReferencePolicy:
    """Freezes a vlm as it is now; `with reference.active() as package:` its forwards are those of that moment.

    TWIST gets a frozen package `reference` beside the one that trains, LoRA without an earlier stage goes with its
    adapter off, any other vlm keeps one frozen copy of what trains, on the device (from its first forward on: a trainer
    moves the vlm after this is made) or, with `offload`, on the CPU. The extra memory is the trainable part, none for a
    fresh LoRA.
    """

    def __init__(self, vlm: VLM, offload: bool = False) -> None:
        self.vlm, self.offload = vlm, offload
        self.held: dict[str, Tensor] = {}
        self.digest: str | None = None  # of `held`, from when it was whole
        if isinstance(vlm, TwinExpertVLM):
            vlm.keep_copy(REFERENCE)
        elif not (isinstance(vlm, LoRAVLM) and vlm.init_args.get("init_from") is None):
            for name, parameter in vlm.named_parameters():
                if parameter.requires_grad:
                    value = parameter.detach()
                    self.held[name] = value.cpu().clone() if offload else value.clone()

    def shard(self) -> None:
        """Keep this rank's part of the copy, now that the vlm has its part of the weights."""
        self.digest = self.sha256()
        parameters = dict(self.vlm.named_parameters())
        for name, value in self.held.items():
            self.held[name] = local(part_like(value, parameters[name])).to(self._place(parameters[name]))

    def _place(self, parameter: Tensor) -> torch.device:
        """Where the copy of a parameter is kept."""
        return torch.device("cpu") if self.offload else parameter.device

    @contextmanager
    def active(self) -> Iterator[str | None]:
        """While this is open, forwards with the `package` that it yields are the reference's; no gradients.

        Autocast keeps its copies of parameters for as long as it is open: those of the reference, made without
        gradients, must not serve the policy, nor the other way round.
        """
        torch.clear_autocast_cache()
        try:
            with torch.no_grad(), self._switched():
                yield REFERENCE if isinstance(self.vlm, TwinExpertVLM) else None
        finally:
            torch.clear_autocast_cache()

    def _switched(self) -> AbstractContextManager[None]:
        """While this is open, a vlm without packages is the reference."""
        if isinstance(self.vlm, TwinExpertVLM):
            return nullcontext()
        if self.held:
            return self._with_held()
        assert isinstance(self.vlm, LoRAVLM)
        return self.vlm.without_adapter()

    @contextmanager
    def _with_held(self) -> Iterator[None]:
        """Parameters point to the copy for the time of a forward without gradients; nothing is copied on the device.

        Sharded ones are gathered from memory of their own: there the contents change places.
        """
        parameters = dict(self.vlm.named_parameters())
        for name, value in self.held.items():
            self.held[name] = value.to(self._place(parameters[name]))
        if is_sharded(self.vlm):
            parts = {name: local(parameters[name]) for name in self.held}
            kept = {name: part.clone() for name, part in parts.items()}
            try:
                for name, value in self.held.items():
                    parts[name].copy_(value)
                yield
            finally:
                for name, value in kept.items():
                    parts[name].copy_(value)
            return
        own = {name: parameters[name].data for name in self.held}
        try:
            for name, value in self.held.items():
                parameters[name].data = value.to(own[name].device)
            yield
        finally:
            for name, value in own.items():
                parameters[name].data = value

    def state_dict(self) -> dict[str, Any]:
        """Tensors of TWIST's frozen package; otherwise the copy's sha256: it is made from `init_from` again."""
        if isinstance(self.vlm, TwinExpertVLM):
            return {"tensors": {k: gathered(v.detach()) for k, v in self.vlm.package_tensors(REFERENCE).items()}}
        return {"sha256": self.sha256()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the reference of a checkpoint; ValueError where `init_from` gives another one now."""
        if "tensors" in state and isinstance(self.vlm, TwinExpertVLM):
            with torch.no_grad():
                load_weights(self.vlm.package_tensors(REFERENCE), state["tensors"])
        elif state.get("sha256") != self.sha256():
            raise ValueError(
                f"reference policy: seen weights {self.sha256()[:12]}, expected {str(state.get('sha256'))[:12]} as in "
                "the checkpoint (init_from has changed since the run began)"
            )

    def sha256(self) -> str:
        """Of the names and bytes of the copy."""
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256()
        for name, value in sorted(self.held.items()):
            digest.update(name.encode())
            digest.update(tensor_bytes(value))
        return digest.hexdigest()
