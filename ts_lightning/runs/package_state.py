"""What a checkpoint of ours holds: the trained weights, one configuration, the base and the versions beneath."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from ts_lightning.models.package import PREFIX, check_base
from ts_lightning.models.sharding import gathered
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.class_paths import plain, renamed
from ts_lightning.runs.resume import versions_now

_LIGHTNINGS = ("hparams_name", "hyper_parameters", "datamodule_hparams_name", "datamodule_hyper_parameters")


class TrainedModule(Protocol):
    """What is asked of a LightningModule here."""

    vlm: VLM

    @property
    def hparams(self) -> Any: ...


class NotStored(str):
    """Why an argument of a module can't be stored: a function, with which a module trains where nothing is saved."""


def stored_hparams(given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain values; ValueError names the one that can't be stored.

    A function in place of an optimizer or a schedule is `NotStored`: the first save says so.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key.startswith("_"):
            continue
        try:
            found[key] = plain(value, key)
        except ValueError as error:
            if not inspect.isroutine(value):
                raise
            found[key] = NotStored(error)
    return found


def pack(module: "TrainedModule", checkpoint: dict[str, Any]) -> None:
    """Replace the full state by what trained, and say what it belongs to: configuration, base, versions.

    `config` is the command line's resolved configuration where there is one (`RunKeeper`), else the module's alone.
    Sharded weights are gathered: every rank has to call it.
    """
    if refused := [value for value in module.hparams.values() if isinstance(value, NotStored)]:
        raise ValueError(refused[0])
    checkpoint["state_dict"] = {PREFIX + k: gathered(v) for k, v in module.vlm.trainable_state_dict().items()}
    for name in _LIGHTNINGS:
        checkpoint.pop(name, None)
    if not checkpoint.get("config"):
        checkpoint["config"] = {"model": {"class_path": class_path(module), "init_args": dict(module.hparams)}}
    checkpoint["base"] = module.vlm.identity()
    checkpoint["versions"] = versions_now()


def unpack(module: "TrainedModule", checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights; ValueError with one line if it is of another class, base or shape."""
    seen = str(model_config(checkpoint).get("class_path"))
    if not _same_class(seen, class_path(module)):
        raise ValueError(
            f"checkpoint: seen class {seen}, expected {class_path(module)} "
            "(to start from its weights alone use the vlm's init_from)"
        )
    if not isinstance(base := checkpoint.get("base"), dict):
        raise ValueError(f"checkpoint: base: seen {type(base).__name__}, expected what the weights were trained on")
    check_base(base, module.vlm.identity())
    state = {key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items()}
    module.vlm.load_trainable_state_dict(state)


def model_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The {class_path, init_args} of a checkpoint's module, {} where there is none.

    Version 0.1.0 kept it as Lightning does, in `hyper_parameters`.
    """
    old = checkpoint.get("hyper_parameters")
    if isinstance(old, dict):
        arguments = {key: value for key, value in old.items() if not str(key).startswith("_")}
        return dict(renamed({"class_path": old.get("_class_path"), "init_args": arguments}))
    config = checkpoint.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return renamed(model) if isinstance(model, dict) else {}


def data_config(checkpoint: Mapping[str, Any]) -> Any:
    """The datamodule of a checkpoint as the command line had it, None where there is none."""
    config = checkpoint.get("config")
    return renamed(config["data"]) if isinstance(config, dict) and "data" in config else checkpoint.get("data_config")


def class_path(module: object) -> str:
    """The dotted name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _same_class(one: str, other: str) -> bool:
    """A class is named by its file, or by the package that offers it."""
    first, second = one.split("."), other.split(".")
    return (first[0], first[-1]) == (second[0], second[-1])
