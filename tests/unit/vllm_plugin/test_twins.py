"""Experts of packages as vLLM's layers run them; vLLM itself lives in another environment."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ts_lightning.vllm_plugin.folders import Mixing, PackageFolder

ONE = Mixing(1, 1, False)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, over empty classes in place of vLLM's."""
    for name, kind in (("layers", "BaseLayerWithLoRA"), ("lora_model", "LoRAModel")):
        module = ModuleType(f"vllm.lora.{name}")
        setattr(module, kind, torch.nn.Module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "ts_lightning.vllm_plugin.twins", raising=False)
    import ts_lightning.vllm_plugin.twins as module_of_ours

    yield module_of_ours
    sys.modules.pop("ts_lightning.vllm_plugin.twins")


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


class MLP:
    """vLLM's form: gate 2 h, up h, down 10 z."""

    act_fn = staticmethod(gelu_and_mul)

    def gate_up_proj(self, h: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.cat([2 * h, h], -1), None

    def down_proj(self, z: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 10 * z, None


def experts(twins: Any, values: dict[str, float], mixing: Mixing = ONE) -> Any:
    tensors = {name: torch.full((1,) if "bias" in name else (1, 1), value) for name, value in values.items()}
    return twins.Experts(tensors, mixing, torch.float32, torch.device("cpu"))


def test_a_full_copy_has_its_biases_and_the_bases_activation(twins: Any) -> None:
    names = [f"{name}.{part}" for name in twins.PROJECTIONS for part in ("weight", "bias")]
    package = experts(twins, dict(zip(names, (2.0, 1.0, 3.0, -1.0, 4.0, 0.5), strict=True)))
    expected = 4 * F.gelu(torch.tensor(3.0), approximate="tanh") * 2 + 0.5  # of h = 1: gate 2 + 1, up 3 - 1
    torch.testing.assert_close(package(torch.ones(1, 1), MLP()), expected.view(1, 1))


def test_low_rank_has_the_bases_activation(twins: Any) -> None:
    package = experts(twins, {"gate_proj.a": 0.5, "gate_proj.b": 2.0, "gate_proj.bias": 1.0})
    expected = 10 * F.gelu(torch.tensor(4.0), approximate="tanh") * 1  # gate 2 + 1 + 1
    torch.testing.assert_close(package(torch.ones(1, 1), MLP()), expected.view(1, 1))


@pytest.mark.parametrize("name", ["experts.0.gate_up_proj.weight", "fc1_proj.weight", "gate_proj.weight_scale"])
def test_experts_of_another_form_are_refused(name: str, twins: Any) -> None:
    with pytest.raises(ValueError, match=f"package: seen {name}, expected experts of gate_proj, up_proj, down_proj"):
        experts(twins, {name: 1.0})


def test_an_expert_without_tokens_runs_nothing(twins: Any) -> None:
    """Some kernels of GPUs take no empty batch."""
    names = [f"experts.{i}.{name}.weight" for i in range(2) for name in twins.PROJECTIONS]
    tensors = dict.fromkeys(names, torch.ones(1, 1)) | {"router.weight": torch.tensor([[1.0], [-1.0]])}
    package = twins.Experts(tensors, Mixing(2, 1, False), torch.float32, torch.device("cpu"))
    seen = []
    mlp = SimpleNamespace(act_fn=lambda x: seen.append(len(x)) or gelu_and_mul(x))
    package(torch.ones(3, 1), mlp)
    assert seen == [3]


def test_two_packages_of_one_name_are_refused(twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "read_package", lambda folder: PackageFolder("grounding", ONE, {}, ""))
    config: Any = SimpleNamespace(additional_config={twins.PACKAGES: ["a", "b"]})
    with pytest.raises(ValueError, match="seen 'grounding' 2 times, expected packages of different names"):
        twins.add_twins(None, config)


class Packages:
    """Folders in memory, and a manager of vLLM's whose one layer, 0, has slots for two adapters."""

    def __init__(self, twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.twins, self.folders = twins, dict[str, PackageFolder]()
        monkeypatch.setattr(twins, "read_package", self.folders.__getitem__)
        monkeypatch.setattr(
            twins, "LoRAModel", lambda number, rank, weights: SimpleNamespace(id=number, loras=weights), raising=False
        )
        self.mlp = torch.nn.Module()
        for name in ("gate_up_proj", "act_fn", "down_proj"):
            setattr(self.mlp, name, getattr(MLP(), name))
        self.mlp.forward = lambda h: 0 * h  # type: ignore[method-assign]
        model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"mlp": self.mlp})])})
        self.manager: Any = SimpleNamespace(model=model, modules={}, lora_slots=2, device="cpu", supports_mm=False)

    def add(self, folder: str, alpha: float, mixing: Mixing = ONE, layers: int = 1) -> None:
        """A package named grounding whose layers give (1 - alpha) times what the base's MLP would."""
        tensors = {"alpha": torch.tensor(alpha)}
        self.folders[folder] = PackageFolder("grounding", mixing, dict.fromkeys(range(layers), tensors), folder)

    def serve(self, folder: str) -> Any:
        wrapper = SimpleNamespace(token_lora_indices=torch.tensor([0, 1]))
        self.manager.modules["layers.0.mlp.down_proj"] = SimpleNamespace(punica_wrapper=wrapper)
        config: Any = SimpleNamespace(
            additional_config={self.twins.PACKAGES: [folder]},
            model_config=SimpleNamespace(enforce_eager=True, dtype=torch.float32),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
        self.twins.TwinMLP.set_mapping = lambda twin, wrapper: setattr(twin, "punica_wrapper", wrapper)
        self.twins.add_twins(self.manager, config)
        return self.manager.modules["layers.0"]

    def load(self, folder: str, slot: int) -> None:
        weights = self.twins.as_adapter(folder, slot + 1).loras["layers.0"]
        self.manager.modules["layers.0"].set_lora(slot, weights.lora_a, weights.lora_b)


@pytest.fixture
def packages(twins: Any, monkeypatch: pytest.MonkeyPatch) -> Packages:
    return Packages(twins, monkeypatch)


def test_two_folders_of_one_name_answer_each_with_its_own_weights(packages: Packages) -> None:
    packages.add("a", 0.5)
    packages.add("b", 0.75)
    twin = packages.serve("a")
    packages.load("a", 0)
    one_h = MLP().down_proj(gelu_and_mul(MLP().gate_up_proj(torch.ones(1, 1))[0]))[0].item()
    packages.load("b", 1)
    torch.testing.assert_close(twin(torch.ones(2, 1)), one_h * torch.tensor([[0.5], [0.25]]))
    packages.load("b", 0)  # the first is no longer served
    torch.testing.assert_close(twin(torch.ones(2, 1)), one_h * torch.tensor([[0.25], [0.25]]))


def test_a_package_in_the_place_of_its_last_version_takes_no_more_memory(packages: Packages) -> None:
    for folder, alpha in (("step-0", 0.5), ("step-1", 0.75)):
        packages.add(folder, alpha)
    twin = packages.serve("step-0")
    packages.load("step-0", 0)
    packages.load("step-1", 0)
    assert twin.slots[0][1] is twin.packages["grounding"]
    packages.load("step-1", 1)  # the same weights under two names
    assert twin.slots[1][1] is twin.packages["grounding"]


@pytest.mark.parametrize("other", [{"mixing": Mixing(1, 1, True)}, {"layers": 2}])
def test_a_folder_of_another_form_is_refused_where_it_is_loaded(other: dict[str, Any], packages: Packages) -> None:
    packages.add("a", 0.5)
    packages.add("b", 0.5, **other)
    packages.serve("a")
    with pytest.raises(ValueError, match=r"package b: seen 'grounding' of another form, .* of a, which has that name"):
        packages.load("b", 1)
