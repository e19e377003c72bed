"""Twin experts in the MLP slots of vLLM's models. Legend: T tokens of a batch, n those of one package, H hidden size.

vLLM flattens the tokens of all requests; whose each is it says by the adapter's slot of every token, which its own LoRA
layers read, too. Packages that the server is told of at its start are held from then on, so that its memory profile
counts them; a slot says which of them answers. Another folder of one's name takes its place, or memory of its own while
both have slots.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.lora_model import LoRAModel

from ts_lightning.vllm_plugin.folders import Mixing, PackageFolder, read_package

PACKAGES = "ts_lightning_packages"  # of vLLM's --additional-config
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_EXPERT = re.compile(rf"(experts\.\d+\.)?({'|'.join(PROJECTIONS)})\.(weight|bias|a|b)")


@dataclass
class PackageWeights:
    """What an adapter of vLLM's holds for one module: tensors in place of A.

    In place of B: their package, the sha256 of its file, and their names.
    """

    lora_a: list[Tensor]
    lora_b: tuple[str, str, tuple[str, ...]]

    def optimize(self) -> "PackageWeights":
        """Nothing to fold in."""
        return self


class Experts(nn.Module):
    """A package's experts in one layer, whole or of low rank over the base's MLP, and its alpha."""

    def __init__(self, tensors: Mapping[str, Tensor], mixing: Mixing, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.mixing = mixing
        exact = ("alpha", "router.weight")
        if unknown := [name for name in tensors if name not in exact and not _EXPERT.fullmatch(name)]:
            raise ValueError(f"package: seen {unknown[0]}, expected experts of {', '.join(PROJECTIONS)}")
        for name, tensor in tensors.items():
            kept = torch.float32 if name in exact else dtype
            self.register_buffer(_flat(name), tensor.to(device, kept, copy=True), persistent=False)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Other values, such as those after a step of training."""
        for name, tensor in tensors.items():
            self.of(name).copy_(tensor)

    def of(self, name: str) -> Any:
        """The tensor of a name; None where there is none."""
        return getattr(self, _flat(name), None)

    def forward(self, h_nH: Tensor, mlp: nn.Module) -> Tensor:
        """[n, H] the mixture; one expert a token is weighted by its probability, several by weights that sum to 1."""
        router = self.of("router.weight")
        if router is None:
            return self.expert("", h_nH, mlp)
        weights_nK, ids_nK = F.linear(h_nH.float(), router).softmax(-1).topk(self.mixing.top_k, -1)
        if self.mixing.top_k > 1:
            weights_nK = weights_nK / weights_nK.sum(-1, keepdim=True)
        out_nH = torch.zeros_like(h_nH)
        for number in range(self.mixing.num_experts):
            tokens, slots = torch.where(ids_nK == number)
            if not len(tokens):
                continue
            y = self.expert(f"experts.{number}.", h_nH[tokens], mlp)
            out_nH.index_add_(0, tokens, y * weights_nK[tokens, slots, None].to(y.dtype))
        return out_nH

    def expert(self, prefix: str, h: Tensor, mlp: Any) -> Tensor:
        """down(act(gate(h)) * up(h)) of one expert, with the activation of the base's MLP."""
        names = gate_name, up_name, down_name = [f"{prefix}{name}" for name in PROJECTIONS]
        if self.of(f"{gate_name}.weight") is not None:
            gate, up, down = ((self.of(f"{name}.weight"), self.of(f"{name}.bias")) for name in names)
            return F.linear(mlp.act_fn(torch.cat([F.linear(h, *gate), F.linear(h, *up)], -1)), *down)
        gate, up = _plain(mlp.gate_up_proj)(h)[0].chunk(2, -1)
        z = mlp.act_fn(torch.cat([gate + self.difference(gate_name, h), up + self.difference(up_name, h)], -1))
        return _plain(mlp.down_proj)(z)[0] + self.difference(down_name, z)

    def difference(self, name: str, x: Tensor) -> Tensor | float:
        """B A x + c, the difference to one of the base's layers; 0 for one that has none."""
        a, b, bias = (self.of(f"{name}.{part}") for part in ("a", "b", "bias"))
        return 0.0 if a is None else F.linear(F.linear(x, a), b, bias)

    def mixing_weight(self) -> Tensor:
        """Return alpha, a scalar."""
        value = self.of("alpha")
        return value.sigmoid() if self.mixing.sigmoid else value


class TwinMLP(BaseLayerWithLoRA):
    """TWIST eq. 6 in an MLP slot: `alpha * IU(h) + (1 - alpha) * VG(h)` for a package's tokens, IU(h) for others."""

    known: ClassVar[dict[str, tuple[str, Any]]] = {}  # folder and form of the packages that this process holds

    def __init__(self, mlp: nn.Module, slots: int) -> None:
        super().__init__()
        self.base_layer = mlp
        self.packages = nn.ModuleDict()
        self.slots: list[tuple[Any, Experts] | None] = [None] * slots

    def reset_lora(self, index: int) -> None:
        """The slot is a LoRA adapter's, or of a package without experts in this layer."""
        self.slots[index] = None

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """The slot is this package's, with these weights, which those of other slots do not become."""
        others = dict(slot for number, slot in enumerate(self.slots) if number != index and slot is not None)
        package: Any = others.get(lora_b)
        if package is None:
            name, _, names = lora_b
            package = self.packages[name]
            if package in others.values():
                package = deepcopy(package)
            package.fill(dict(zip(names, lora_a, strict=True)))
        self.slots[index] = lora_b, package

    def forward(self, h_TH: Tensor) -> Tensor:
        """[T, H] the layer's output."""
        iu_TH = self.base_layer(h_TH)
        slot_T = self.punica_wrapper.token_lora_indices
        if len(slot_T) < len(h_TH):
            return iu_TH  # a run without requests
        out_TH = iu_TH
        for number, slot in enumerate(self.slots):
            if slot is None or not len(tokens_n := (slot_T[: len(h_TH)] == number).nonzero().squeeze(1)):
                continue
            _, package = slot
            alpha = package.mixing_weight().to(iu_TH.dtype)
            mixed_nH = alpha * iu_TH[tokens_n] + (1 - alpha) * package(h_TH[tokens_n], self.base_layer)
            out_TH = out_TH.index_copy(0, tokens_n, mixed_nH)
        return out_TH


def add_twins(manager: Any, config: Any) -> None:
    """Give the model of vLLM's adapter manager the twins of the packages that the server was told of."""
    folders = (config.additional_config or {}).get(PACKAGES, ())
    packages = [read_package(folder) for folder in folders]
    if not packages:
        return
    names = [package.name for package in packages]
    if repeated := [name for name in names if names.count(name) > 1]:
        expected = "expected packages of different names (`package` of the training that made them)"
        raise ValueError(f"{PACKAGES}: seen {repeated[0]!r} {names.count(repeated[0])} times, {expected}")
    if not config.model_config.enforce_eager:
        raise ValueError(
            f"{PACKAGES}: seen some without --enforce-eager, expected it: whose a token is changes the work"
        )
    if config.parallel_config.tensor_parallel_size > 1 and any(map(_low_rank, packages)):
        raise ValueError(f"{PACKAGES}: seen experts of low rank with tensor parallelism, expected full copies")
    for number, (place, mlp) in _mlps(manager).items():
        used = [package for package in packages if number in package.layers]
        if not used:
            continue
        twin = TwinMLP(mlp, manager.lora_slots)
        for package in used:
            tensors = package.layers[number]
            twin.packages[package.name] = Experts(
                tensors, package.mixing, config.model_config.dtype, torch.device(manager.device)
            )
        parent, _, name = place.rpartition(".")
        setattr(manager.model.get_submodule(parent), name, twin)
        twin.set_mapping(next(m.punica_wrapper for key, m in manager.modules.items() if key.startswith(parent)))
        manager.modules[_key(number)] = twin
    TwinMLP.known.update({p.name: (str(folder), p.form) for p, folder in zip(packages, folders, strict=True)})


def as_adapter(folder: str, number: int) -> LoRAModel:
    """A package as the adapter of a number; ValueError for one that the server was not told of at its start.

    Another folder of a name that it was told of is taken where all but the values is the same.
    """
    package = read_package(folder)
    if package.name not in TwinMLP.known:
        expected = f"expected one of {sorted(TwinMLP.known)}: --additional-config {PACKAGES} names them"
        raise ValueError(f"package {folder}: seen {package.name!r}, {expected}")
    first, form = TwinMLP.known[package.name]
    if package.form != form:
        expected = f"expected the layers, shapes and mixing of {first}, which has that name since the server's start"
        raise ValueError(f"package {folder}: seen {package.name!r} of another form, {expected}")
    weights: dict[str, Any] = {}
    for layer, tensors in package.layers.items():
        weights[_key(layer)] = PackageWeights(list(tensors.values()), (package.name, package.sha256, tuple(tensors)))
    return LoRAModel(number, 1, weights)


def _key(layer: int) -> str:
    """Under which name vLLM's manager knows the twin of a layer: an adapter's weights have the same."""
    return f"layers.{layer}"


def _mlps(manager: Any) -> dict[int, tuple[str, nn.Module]]:
    """The MLPs of the language model's layers by the layer's number, with their places in the model."""
    prefix = manager.mm_mapping.language_model[0] if manager.supports_mm else ""
    found = {}
    for place, module in manager.model.named_modules():
        match = re.fullmatch(r".*layers\.(\d+)\.mlp", place)
        if match is not None and place.startswith(prefix):
            if not all(hasattr(module, name) for name in ("gate_up_proj", "act_fn", "down_proj")):
                expected = "expected MLPs of gate_up_proj, act_fn and down_proj"
                raise ValueError(f"{PACKAGES}: seen {type(module).__name__}, {expected}")
            found[int(match[1])] = (place, module)
    return found


def _low_rank(package: PackageFolder) -> bool:
    return any(name.endswith("_proj.a") for layer in package.layers.values() for name in layer)


def _plain(linear: Any) -> Any:
    """The base's own layer, without vLLM's LoRA around it, which counts the tokens of the whole batch."""
    return getattr(linear, "base_layer", linear)


def _flat(name: str) -> str:
    return name.replace(".", "__")
