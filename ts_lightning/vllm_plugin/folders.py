"""A package's folder, as `models.package` writes it, read with torch and safetensors alone."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

CONFIG, WEIGHTS, FORMAT = "twin_config.json", "package.safetensors", 1
_LAYER = re.compile(r"layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Mixing:
    """How the experts of a layer are chosen and mixed. `top_k` is that of evaluation."""

    num_experts: int
    top_k: int
    sigmoid: bool


@dataclass(frozen=True)
class PackageFolder:
    """`layers`: each twin layer's tensors by their names inside of it, its `alpha` with them; `sha256`: of them all."""

    name: str
    mixing: Mixing
    layers: dict[int, dict[str, Tensor]]
    sha256: str

    @property
    def form(self) -> tuple[Mixing, dict[int, dict[str, tuple[int, ...]]]]:
        """What another package has to share with this one to stand in its place: all but the values."""
        shapes = {number: {name: tuple(t.shape) for name, t in layer.items()} for number, layer in self.layers.items()}
        return self.mixing, shapes


def is_package(folder: str | Path) -> bool:
    """Whether it is a package's folder."""
    return (Path(folder) / CONFIG).is_file()


def read_package(folder: str | Path) -> PackageFolder:
    """The package of a folder; ValueError in one line for one that is not ours, has changed, or vLLM can't answer with.

    Those have rows of tokens, or were trained over a quantised base: vLLM answers over the whole one.
    """
    where = f"package {folder}"
    config: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text())
    if config.get("format") != FORMAT:
        raise ValueError(f"{where}: seen format {config.get('format')!r}, expected {FORMAT}")
    if (codes := config["base"].get("quantization")) is not None:
        raise ValueError(f"{where}: seen one over a base in {codes}, expected one over a base that is not quantised")
    path = Path(folder) / WEIGHTS
    if hashlib.sha256(path.read_bytes()).hexdigest() != config["sha256"]:
        raise ValueError(f"{where}: {WEIGHTS} changed since it was saved")
    tensors, options = load_file(path), config["options"]
    if rows := sorted(name for name in tensors if name.startswith("token_rows.")):
        expected = "expected none: vLLM answers with the base's rows (train_token_rows, new_tokens)"
        raise ValueError(f"{where}: seen {rows[0]}, {expected}")
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := _LAYER.fullmatch(name)) is not None:
            layers.setdefault(int(match[1]), {})[match[2].removeprefix("experts.")] = tensor
    if "alpha" in tensors:
        layers = {number: {**layer, "alpha": tensors["alpha"]} for number, layer in layers.items()}
    top_k = min(options["eval_top_k"] or options["top_k"], options["num_experts"])
    mixing = Mixing(options["num_experts"], top_k, options["alpha_param"] == "sigmoid")
    return PackageFolder(config["package"], mixing, layers, config["sha256"])
