"""The policy's weights for another engine: written as files that it reads, after every optimizer step."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ts_lightning.models.lora import LoRAVLM
from ts_lightning.models.ranks import rank
from ts_lightning.models.sharding import gathered, is_sharded
from ts_lightning.models.twin_vlm import TwinExpertVLM
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.vllm_server import BASE

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")


def adapters(vlm: VLM) -> tuple[str, ...]:
    """The names of the policy's parts as adapters of an engine that holds the base; none: it is a whole model.

    ValueError for what engines can't take as an adapter.
    """
    if codes := vlm.identity().get("quantization"):
        raise ValueError(f"quantization: seen {codes!r} beside vLLM, expected null: it loads the base as it is stored")
    if isinstance(vlm, LoRAVLM):
        if vlm.init_args.get("train_token_rows"):
            raise ValueError(
                "train_token_rows: seen some beside vLLM, expected none: its adapters have no rows of tokens"
            )
        return ("policy",)
    return vlm.skills if isinstance(vlm, TwinExpertVLM) else ()


def model_of(vlm: VLM, task: int) -> str:
    """The name under which an engine answers rows of a task."""
    parts = adapters(vlm)
    if not parts or (isinstance(vlm, TwinExpertVLM) and not task):
        return BASE
    return parts[task - 1] if isinstance(vlm, TwinExpertVLM) else parts[0]


def served(vlm: VLM, folders: Mapping[str, Path]) -> list[str]:
    """The arguments of a vLLM server of the policy: its base, adapters or packages by the names of their folders.

    Its dtype is what the policy computes in here: autocast's, where weights that train are held in fp32.
    """
    weight = vlm.backbone.embedding.weight
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    arguments = ["--dtype", str(dtype).removeprefix("torch."), "--max-model-len", str(vlm.encoder.max_length)]
    if not folders:
        return arguments
    if isinstance(vlm, LoRAVLM):
        arguments += ["--max-lora-rank", str(max(8, 2 ** (int(vlm.init_args["rank"]) - 1).bit_length()))]
    else:
        packages = {"ts_lightning_packages": [str(folder) for folder in folders.values()]}
        arguments += ["--enforce-eager", "--additional-config", json.dumps(packages)]
    named = [f"{name}={folder}" for name, folder in folders.items()]
    return [*arguments, "--enable-lora", "--max-loras", str(len(folders)), "--lora-modules", *named]


def base_folder(vlm: VLM) -> Path:
    """The folder that the policy's backbone was loaded from; ValueError for one of random weights."""
    folder = vlm.backbone.init_args.get("pretrained")
    if folder is None or not Path(folder).is_dir():
        raise ValueError(f"backbone: seen pretrained {folder!r} beside vLLM, expected a folder that vLLM loads, too")
    return Path(folder)


def write_weights(vlm: VLM, folder: Path) -> None:
    """The whole model in its public layout; every rank has to call it, rank 0 writes.

    Everything beside the weights (tokenizer, processor, template) comes from the folder of the backbone; its image
    processor makes the pixels that the policy is trained on.
    """
    model: Any = vlm.backbone.model
    state = {name: gathered(tensor) for name, tensor in model.state_dict().items()} if is_sharded(vlm) else None
    if rank():
        return
    folder.mkdir(parents=True)
    for file in base_folder(vlm).iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, folder / file.name)
    for name, content in getattr(vlm.backbone, "side_files", {}).items():
        (folder / name).write_bytes(content)
    model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    _name_as(base_folder(vlm), folder)


def _name_as(base: Path, folder: Path) -> None:
    """Give the weights of `folder` the names in the base's files: transformers 5 writes a CLIP tower's shorter."""
    known: set[str] = set()
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            known.update(weights.keys())
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        longer = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in state}
        renamed = {name: longer[name] for name in state if name not in known and longer[name] in known}
        if renamed:
            save_file({renamed.get(name, name): value for name, value in state.items()}, file, {"format": "pt"})


def write_adapter(vlm: VLM, name: str, folder: Path) -> None:
    """One adapter or package, as `export` writes it."""
    if is_sharded(vlm):
        raise ValueError("strategy: seen sharded experts or adapters beside vLLM, expected DDP: they are small")
    if isinstance(vlm, TwinExpertVLM):
        vlm.save_pretrained(folder, name=name)
    elif isinstance(vlm, LoRAVLM):
        vlm.save_pretrained(folder)
