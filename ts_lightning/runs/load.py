"""From a checkpoint file, or a folder that was exported, to the module that was trained."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context
from torch import Tensor

from ts_lightning.data.remote import is_url
from ts_lightning.models import VLM, PlainVLM
from ts_lightning.models.backbones.hub_layout import saved_dtype
from ts_lightning.models.hub import on_disk
from ts_lightning.models.lora import is_adapter, read_adapter
from ts_lightning.models.package import check_unchanged, is_package, read_config, vlm_arguments
from ts_lightning.runs.checkpoint_io import CheckpointIO
from ts_lightning.runs.class_paths import instantiate
from ts_lightning.runs.package_state import data_config, model_config
from ts_lightning.runs.signals import FILENAME as STOPPED

LARGE_BASE, LARGE_SETTING = 20_000_000, 10_000  # of this size nobody's memory is in danger
STANDALONE = "ts_lightning.json"
BASE = "base"  # of a standalone folder of twin experts; folders of before hold it beside the package
INSTALLED = "packages"  # of the same: those beside the one that trained, by name
RUN_LAST = "checkpoints/last.ckpt"
PLAIN_TOKENS = 256  # of an answer by a model that says nothing of it
_OF_TRAINING = (
    *("loops", "callbacks", "optimizer_states", "lr_schedulers", "ShardDataModule"),
    *("rollout", "reference"),  # of GRPO
)


def load(path: str | Path, device: str = "cpu", gpu: bool | None = None) -> Any:
    """The LightningModule of the class, with the vlm and the weights, that a checkpoint or a folder stores; in eval.

    `hub:NAME` is a folder on a hub. A folder is a package, an adapter, a standalone model, a run's (its last
    checkpoint) or a plain model's (the base itself, on a GPU in 16 bits where it was saved so). device: as in
    `found_device`; gpu: whether a GPU answers (None: where `device` is one). FileNotFoundError or ValueError (one line)
    for a missing, truncated or foreign file, and for another base.
    """
    place, path = found_device(device), run_checkpoint(path)
    if Path(path).is_dir():
        return _build(folder_model(path, place.type != "cpu" if gpu is None else gpu)).eval().to(place)
    checkpoint = CheckpointIO().load_checkpoint(path)
    model = answering(stored_model(checkpoint, path))
    try:
        module = _build(model)
        module.on_load_checkpoint(what_answers(checkpoint))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"checkpoint {path}: {error}") from error
    return module.eval().to(place)


def load_or_tiny(path: str | Path | None, device: str, gpu: bool | None = None) -> VLM:
    """The vlm of what `load` opens; without a path the untouched tiny base."""
    from ts_lightning.models.backbones.tiny import TinyBackbone

    return load(path, device, gpu).vlm if path else PlainVLM(TinyBackbone(), train=[]).eval().to(found_device(device))


def found_device(name: str) -> torch.device:
    """That of "cpu", "cuda" or "cuda:1"; "auto" is a GPU where there is one. ValueError for one that is not here."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device: seen {name!r}, expected auto, cpu, cuda or cuda:N")
    device, gpus = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device: seen {name!r} where torch sees {gpus} GPUs, expected one of these, auto or cpu")
    return device


class AnswersIO(CheckpointIO):
    """For evaluation: Lightning is given what answers, and its own version, so that it converts nothing."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return what_answers(super().load_checkpoint(path, map_location, weights_only))


def what_answers(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what only training goes on from: it would be read before anybody has looked at it."""
    kept = {name: value for name, value in checkpoint.items() if name not in _OF_TRAINING}
    return kept | {"pytorch-lightning_version": L.__version__}


def run_checkpoint(path: str | Path) -> str | Path:
    """The newest checkpoint of a run's folder; the fetched folder of a `hub:NAME`; `path` itself for anything else.

    That is last.ckpt, one of `SaveCheckpoints`, or the one that a signal had the run save.
    """
    path = on_disk(path)
    last = Path(path) / RUN_LAST
    kept = [one for one in (last, last.with_name(STOPPED), *last.parent.glob("step=*.ckpt")) if one.is_file()]
    return max(kept, key=lambda one: one.stat().st_mtime_ns, default=path)


def _build(model: dict[str, Any]) -> Any:
    with _given_hyperparameters_context(dict(model["init_args"]), "lightning.pytorch.cli.instantiate_module"):
        return instantiate(L.LightningModule, **model)


def folder_model(folder: str | Path, gpu: bool = False) -> dict[str, Any]:
    """The {class_path, init_args} of a module over what a folder holds; ValueError for a folder of another kind.

    gpu: a plain model keeps the 16 bits that it was saved in; a CPU is slow in them.
    """
    folder = Path(folder)
    if is_package(folder):
        stored = read_config(folder)
        own, tokens = {**vlm_arguments(stored), "init_from": str(folder)}, stored["max_new_tokens"]
        return _module("StepwiseSFT", "TwinExpertVLM", stored["backbone"], tokens, own)
    if is_adapter(folder):
        stored = read_adapter(folder)
        own, tokens = {**stored["options"], "init_from": str(folder)}, stored["max_new_tokens"]
        return _module("LoRASFT", "LoRAVLM", stored["backbone"], tokens, own)
    if is_standalone(folder):
        return standalone_model(folder)
    if (folder / "config.json").is_file():
        own = {"dtype": dtype} if gpu and (dtype := saved_dtype(folder)) else {}
        return _module("SFT", "PlainVLM", _plain(str(folder), **own), PLAIN_TOKENS, {"train": []})
    expected = "a run with checkpoints/last.ckpt, a package, an adapter, a standalone model or a plain model"
    raise ValueError(f"{folder}: seen none of our folders, expected {expected}")


def _plain(folder: str, **own: str) -> dict[str, Any]:
    """The backbone of a plain model's folder."""
    return {"class_path": "ts_lightning.models.backbones.hf.HFBackbone", "init_args": {"pretrained": folder, **own}}


def _module(name: str, vlm: str, backbone: Any, max_new_tokens: int, own: dict[str, Any]) -> dict[str, Any]:
    """A module over a vlm of ours, with the vlm's `own` arguments."""
    described = {"class_path": f"ts_lightning.models.{vlm}", "init_args": {"backbone": backbone, **own}}
    return {
        "class_path": f"ts_lightning.training.{name}",
        "init_args": {"vlm": described, "max_new_tokens": max_new_tokens},
    }


def is_standalone(folder: Path) -> bool:
    """Whether `folder` was written by `export.write_standalone`."""
    return (folder / STANDALONE).is_file()


def standalone_model(folder: Path) -> dict[str, Any]:
    """The module over a standalone folder: its base from the folder, and the packages or the adapter inside of it.

    ValueError for a folder that is none, or whose weights have changed (of twin experts the package knows its base).
    """
    try:
        stored = json.loads((folder / STANDALONE).read_text())
        backbone = dict(stored["backbone"])
        base = folder / BASE if (folder / BASE).is_dir() else folder
        backbone["init_args"] = {**backbone["init_args"], "pretrained": str(base)}
        max_new_tokens = int(stored["max_new_tokens"])
        sums = dict(stored.get("sha256", {}))  # folders of before have none
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / STANDALONE}: seen {error!r}, expected a file made by the export") from None
    for part in ("package", "adapter"):
        if (folder / part).is_dir():
            model = folder_model(folder / part)
            own = model["init_args"]["vlm"]["init_args"]
            own["backbone"] = backbone
            if beside := sorted((folder / INSTALLED).glob("*")):
                own["packages"] = {package.name: str(package) for package in beside}
            return model
    for weights in sorted(folder.glob("*.safetensors")):
        if weights.name in sums:
            check_unchanged(weights, sums[weights.name], f"standalone model {folder}")
    return _module("SFT", "PlainVLM", backbone, max_new_tokens, {"train": []})


def stored_model(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The {class_path, init_args} of a checkpoint's module; the vlm's `init_from` is dropped, own weights follow."""
    model = model_config(checkpoint)
    arguments = model.get("init_args")
    if not isinstance(model.get("class_path"), str) or not isinstance(arguments, dict):
        raise ValueError(f"checkpoint {path}: seen no module class, expected a checkpoint written by ts_lightning")
    _check_weights(checkpoint.get("state_dict"), path)
    vlm = _described(arguments.get("vlm"), f"checkpoint {path}: vlm")
    backbone = vlm["init_args"].get("backbone")
    if isinstance(backbone, str):  # a configuration's plain folder; left as text a file of this name would be read
        backbone = _plain(backbone)
    backbone = _described(backbone, f"checkpoint {path}: vlm.init_args.backbone")
    _check_size(vlm["init_args"], backbone, checkpoint, path)
    own = {**vlm["init_args"], "backbone": backbone}
    if own.get("init_from"):
        own["init_from"] = None
    return {"class_path": model["class_path"], "init_args": {**arguments, "vlm": {**vlm, "init_args": own}}}


def answering(model: dict[str, Any]) -> dict[str, Any]:
    """The part of a module that answers: its vlm and plain settings; no optimizer, schedule or other object."""
    kept = {k: v for k, v in model["init_args"].items() if k == "vlm" or not _names_a_class(v)}
    return {"class_path": model["class_path"], "init_args": kept}


def _names_a_class(value: Any) -> bool:
    if isinstance(value, dict):
        return "class_path" in value or any(map(_names_a_class, value.values()))
    return isinstance(value, list) and any(map(_names_a_class, value))


def stored_data(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any] | None:
    """The datamodule of a checkpoint: one class, with plain values and local paths; ValueError for anything else."""
    data = data_config(checkpoint)
    if data is None:
        return None
    data = _described(data, f"checkpoint {path}: data")
    arguments = {k: v for k, v in data["init_args"].items() if k not in ("encode", "pad_id")}
    if _names_a_class(arguments):
        raise ValueError(f"checkpoint {path}: data: seen a class in its arguments, expected plain values")
    if urls := [text for text in _texts(arguments) if is_url(text) and not text.startswith("file://")]:
        expected = "expected paths: what a checkpoint names is not fetched (give data.init_args on the command line)"
        raise ValueError(f"checkpoint {path}: data: seen the URL {urls[0]!r:.200}, {expected}")
    return {"class_path": data["class_path"], "init_args": arguments}


def _described(value: Any, where: str) -> dict[str, Any]:
    """{class_path, init_args}; a text in its place would be read as a file's name."""
    given = value if isinstance(value, dict) else {}
    arguments = given.get("init_args", {})
    if not isinstance(given.get("class_path"), str) or not isinstance(arguments, dict):
        raise ValueError(f"{where}: seen {type(value).__name__}, expected class_path and init_args")
    return {"class_path": given["class_path"], "init_args": arguments}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_weights(state: Any, path: str | Path) -> None:
    """ValueError for anything but named tensors."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"checkpoint {path}: state_dict: seen {type(state).__name__}, expected tensors by their names")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"checkpoint {path}: state_dict: {name}: seen {type(value).__name__}, expected a tensor")


def _check_size(vlm: dict[str, Any], backbone: dict[str, Any], checkpoint: dict[str, Any], path: str | Path) -> None:
    """ValueError where the sizes that a checkpoint states are out of proportion to the weights that it holds.

    They count for what is built without a file of its own: what trained, and a base of random weights.
    """
    stored = {tensor.untyped_storage().data_ptr(): tensor for tensor in checkpoint["state_dict"].values()}
    held = sum(tensor.untyped_storage().nbytes() // 4 for tensor in stored.values())
    for name, value in _numbers(vlm).items():
        if value > max(LARGE_SETTING, held):
            where = f"checkpoint {path}: vlm.init_args.{name}"
            raise ValueError(f"{where}: seen {value:g}, expected one that fits the {held:,} numbers of the file")
    if backbone["init_args"].get("pretrained", "shipped") is not None:
        return
    sizes = _numbers(backbone["init_args"])
    hidden, inner = sizes.get("hidden_size", 0), sizes.get("intermediate_size", 0)
    layers = sizes.get("num_layers", 0) * (1 + sizes.get("num_experts", 0)) + sizes.get("vision_layers", 0)
    built = layers * (4 * hidden * hidden + 2 * hidden * inner) + sizes.get("image_size", 0) ** 2
    if built > max(LARGE_BASE, 200 * held):
        seen = f"seen a base of {built:,.0f} numbers"
        raise ValueError(f"checkpoint {path}: {seen}, expected one that fits the {held:,} numbers of the file")


def _numbers(arguments: dict[str, Any]) -> dict[str, float]:
    """The settings that are, or that are read as, numbers."""
    found = {}
    for name, value in arguments.items():
        with suppress(ValueError, TypeError):
            found[name] = float(value)
    return found
