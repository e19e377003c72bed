"""The baseline of the paper's tables: low-rank adapters (peft) on a frozen backbone."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ts_lightning.grounding.foreign_text import markdown_code, markdown_text
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.hub import on_disk
from ts_lightning.models.package import (
    check_base,
    check_unchanged,
    file_sha256,
    listed_scores,
    load_weights,
    readable,
)
from ts_lightning.models.vlm import VLM

CONFIG = "adapter_config.json"  # these two names are peft's
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"  # ours: which base, and how to build it
ALL_LINEAR = "all-linear"
ROUTERS = ("router", "gate")  # of sparse bases: stay frozen, as they are balanced
PACKED = {"glm4v_moe": ("gate_proj", "up_proj", "down_proj")}  # peft takes these for names of the packed experts
_KEYS = {"base", "backbone", "options", "max_new_tokens"}


class LoRAVLM(VLM):
    """Adapters on linear layers of the decoder; the backbone's own weights are frozen, every task goes through them.

    Args:
        backbone: The pre-trained vlm, or the folder of one.
        rank: Rank r of the update B A of each matrix.
        lora_alpha: The update is scaled by lora_alpha / rank.
        dropout: Of the adapters' input.
        targets: Names of the linear layers inside decoder layers that get adapters; "all-linear" is every one
            but routers (and, where peft would take their names for packed experts, MLPs).
        dora: DoRA: the length of each column of B A + W is trained apart from its direction (without `quantization`).
        train_token_rows: Tokens whose embedding and head rows train as well ("codec": those of the codec), as in
            `TwinExpertVLM`, but for every task: plain peft has no tasks.
        activation_checkpointing: What is recomputed in backward: "none" (False), the "attention" of each decoder
            layer, or the "block" (True), the layer whole.
        attention: "auto", "sdpa", "flex" or "flash" (`models.attention`).
        quantization: Hold the frozen matrices of the decoder's layers in "int8" or "nf4".
        init_from: Checkpoint or adapter folder whose weights are loaded, and nothing else.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        rank: int = 128,
        lora_alpha: float = 256,
        dropout: float = 0.05,
        targets: Sequence[str] | str = ALL_LINEAR,
        dora: bool = False,
        train_token_rows: Sequence[str] | None = (),
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        quantization: str | None = None,
        init_from: str | None = None,
    ) -> None:
        if dora and quantization is not None:  # peft would take lengths of codes
            raise ValueError(f"quantization: seen {quantization!r} with dora, expected null or dora: false")
        super().__init__(backbone, activation_checkpointing, attention, quantization)
        backbone = self.backbone
        if rank < 1:
            raise ValueError(f"rank: seen {rank}, expected at least 1")
        modules = backbone.layers.named_modules()
        linears = sorted({n.rsplit(".", 1)[-1] for n, m in modules if isinstance(m, torch.nn.Linear)})
        packed = PACKED.get(backbone.model.config.model_type, ())
        every = [name for name in linears if name not in (*ROUTERS, *packed)]
        self.targets = every if targets == ALL_LINEAR else [targets] if isinstance(targets, str) else [*targets]
        if missing := [name for name in self.targets if name not in linears]:
            expected = f"{ALL_LINEAR}, or linear layers of the decoder: {', '.join(linears)}"
            raise ValueError(f"targets: seen {missing[0]!r}, expected {expected}")
        if taken := [name for name in self.targets if name in packed]:
            expected = f"{ALL_LINEAR} or some of {', '.join(every)}: peft would adapt packed experts"
            raise ValueError(f"targets: seen {taken[0]!r} of {backbone.model.config.model_type}, expected {expected}")
        names = {module: name for name, module in backbone.model.named_modules()}
        layers = names[backbone.layers]
        self.train_token_rows = list(train_token_rows or ())
        ids = backbone.encoder.token_ids(backbone.encoder.row_tokens(train_token_rows))
        tied = backbone.head.weight is backbone.embedding.weight  # peft lets a tied head follow the embedding
        matrices = [backbone.embedding] if tied else [backbone.embedding, backbone.head]
        if ids and backbone.head.bias is not None:
            raise ValueError("train_token_rows: seen a head with a bias, which peft leaves out, expected none")
        config = LoraConfig(
            r=rank,
            lora_alpha=lora_alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=rf"{re.escape(layers)}\.\d+\..*?({'|'.join(map(re.escape, self.targets))})",
            use_dora=dora,
            trainable_token_indices={names[m].rsplit(".", 1)[-1]: ids for m in matrices} if ids else None,
        )
        self.__dict__["adapter"] = get_peft_model(backbone.model, config)  # not a child: it holds backbone.model
        init_from = None if init_from is None else str(on_disk(init_from))
        if init_from is not None and (Path(init_from) / CONFIG).is_file():
            self._load(init_from)
        elif init_from is not None:
            load_weights(self.trainable_state_dict(), init_from, self.identity(), check_options=self.check_options)

    adapter: PeftModel

    def weights_of(self, weights: Collection[str]) -> dict[str, Any]:
        adapters: Any = self.adapter.peft_config["default"]
        return {"lora_alpha": adapters.lora_alpha, "train_token_rows": self.train_token_rows}

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: Backbone) -> "LoRAVLM":
        """The vlm of a folder made by `save_pretrained`, over its base; ValueError for another base."""
        return cls(backbone, **read_adapter(folder)["options"], init_from=str(folder)).eval()

    def save_pretrained(
        self, folder: str | Path, scores: Mapping[str, float] | None = None, max_new_tokens: int = 64
    ) -> None:
        """Write the adapters as peft does, and `base.json`; `scores` go into the card."""
        folder = Path(folder)
        base = self.backbone.init_args.get("pretrained")
        found = isinstance(base, str) and Path(base).is_dir()  # where transformers and peft look for the base
        base = str(Path(str(base)).resolve()) if found else self.backbone.name
        self.adapter.peft_config["default"].base_model_name_or_path = base
        self.adapter.save_pretrained(str(folder), save_embedding_layers=False)
        readable(folder)
        options = {k: v for k, v in self.init_args.items() if k not in ("backbone", "init_from")}
        options["targets"] = self.targets
        stored = {
            "base": self.identity(),
            "backbone": {"class_path": self.backbone.class_path, "init_args": self.backbone.init_args},
            "options": options,
            "max_new_tokens": max_new_tokens,
            "sha256": file_sha256(folder / WEIGHTS),
        }
        (folder / BASE).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
        (folder / "README.md").write_text(_card(stored, scores or {}))

    def _load(self, folder: str | Path) -> None:
        stored, weights = read_adapter(folder), Path(folder) / WEIGHTS
        check_base(stored["base"], self.identity())
        try:
            scale = {"lora_alpha": json.loads((Path(folder) / CONFIG).read_text())["lora_alpha"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"adapter {folder}: {CONFIG}: seen {error!r}, expected a file of peft") from None
        self.check_options({"init_args": {**stored["options"], **scale, "backbone": stored["backbone"]}}, folder)
        try:
            if "sha256" in stored:  # adapters of before have none
                check_unchanged(weights, stored["sha256"], f"adapter {folder}")
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"adapter {folder}: {WEIGHTS} can't be read ({error}), expected safetensors") from None
        with torch.no_grad():
            load_weights(self.adapter_tensors(), state)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The trained tensors under the names of peft's files."""
        state = get_peft_model_state_dict(self.adapter, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in state.items()}

    def without_adapter(self) -> AbstractContextManager[None]:
        """While this is open, the vlm is its base."""
        return self.adapter.disable_adapter()

    def merge(self) -> Any:
        """The transformers model with the adapters added into its matrices; this vlm has none afterwards."""
        return self.adapter.merge_and_unload()


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder written by `LoRAVLM.save_pretrained`."""
    return (Path(path) / CONFIG).is_file() and (Path(path) / BASE).is_file()


def read_adapter(folder: str | Path) -> dict[str, Any]:
    """`base.json` of an adapter folder, checked; ValueError in one line for anything else."""
    path = Path(folder) / BASE
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"adapter {path}: seen {error}, expected a file made by save_pretrained") from None
    if not isinstance(stored, dict) or stored.keys() - {"sha256"} != _KEYS:
        raise ValueError(f"adapter {path}: seen other keys, expected {', '.join(sorted(_KEYS))}")
    for name in ("backbone", "options"):
        if not isinstance(stored[name], dict):
            raise ValueError(f"adapter {path}: {name}: seen {type(stored[name]).__name__}, expected an object")
    stored["options"].setdefault("targets", ["fc1", "fc2"])  # an adapter of before says its targets, or has these
    return stored


def _card(stored: Mapping[str, Any], scores: Mapping[str, float]) -> str:
    base = stored["base"]
    return (
        f"# LoRA adapter\n\nBase: {markdown_text(base['class'])} {markdown_code(base['name'])}, "
        f"sha256 of its weights {markdown_code(base['sha256'])}.\n\n"
        f"Options: {markdown_code(json.dumps(stored['options']))}\n\n## Scores\n\n{listed_scores(scores)}\n"
    )
