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
    monkeypatch.setattr(twins, "read_package", lambda folder: PackageFolder("grounding", ONE, {}))
    config: Any = SimpleNamespace(additional_config={twins.PACKAGES: ["a", "b"]})
    with pytest.raises(ValueError, match="seen 'grounding' 2 times, expected packages of different names"):
        twins.add_twins(None, config)
