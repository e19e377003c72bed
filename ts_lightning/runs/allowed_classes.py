"""What a configuration or a checkpoint may name: classes from a list, each where its base is expected, no function."""

import functools
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OURS = {
    "ts_lightning.training": (
        *("SFT", "StepwiseSFT", "LoRASFT", "GRPO", "WarmupCosine", "PredictionWriter", "Throughput", "CastOnce"),
    ),
    "ts_lightning.runs": (
        *("CheckpointIO", "FSDP2Strategy", "SaveCheckpoints", "SkipNonFinite", "TrackioLogger", "ZeRO2Strategy"),
    ),
    "ts_lightning.rl": ("RolloutCallback", "VLLMEngine"),
    "ts_lightning.data": ("ShardDataModule", "ShardSource"),
    "ts_lightning.losses": (
        *("Stepwise", "TokenMean"),
        *("MIRG", "GRPO", "BNPO", "DrGRPO", "DAPO", "GSPO", "CISPO", "SAPO"),
    ),
    "ts_lightning.models": ("TwinExpertVLM", "LoRAVLM", "PlainVLM"),
}
# Defined where they are named: nothing is imported to learn that, and transformers' models are slow to import.
BACKBONES = {
    "ts_lightning.models.backbones.tiny": ("TinyBackbone",),
    "ts_lightning.models.backbones.hf": ("HFBackbone",),
    "ts_lightning.models.backbones.llava": ("LlavaBackbone",),
    "ts_lightning.models.backbones.moe_llava": ("MoELlavaBackbone",),
    "ts_lightning.models.backbones.qwen_vl": ("QwenVLBackbone",),
    "ts_lightning.models.backbones.internvl": ("InternVLBackbone",),
}
# Read one by one: none of them runs what it is given, loads a file or writes outside of the folder it is told.
OTHERS = {
    "lightning.pytorch.callbacks": (
        *("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary"),
        *("RichModelSummary", "RichProgressBar", "TQDMProgressBar", "Timer"),
    ),
    "lightning.pytorch.loggers": ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"),
    "lightning.pytorch.strategies": ("DDPStrategy", "SingleDeviceStrategy"),
    "lightning.pytorch.accelerators": ("CPUAccelerator", "CUDAAccelerator"),
    "lightning.pytorch.plugins.environments": ("LightningEnvironment", "SLURMEnvironment"),
    "lightning.pytorch.profilers": ("AdvancedProfiler", "PassThroughProfiler", "SimpleProfiler"),
    "lightning.pytorch.cli": ("ReduceLROnPlateau",),
    "torch.optim": ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"),
    "torch.optim.lr_scheduler": (
        *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LinearLR"),
        *("MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR"),
    ),
}
# Of libraries that may be missing: named without importing them.
OPTIONAL = {
    "bitsandbytes.optim": ("AdamW8bit", "PagedAdamW8bit"),
    "bitsandbytes.optim.adamw": ("AdamW8bit", "PagedAdamW8bit"),
}
# Where a file may say what is sent is said here; addresses and accounts are the environment's alone.
LISTED_ARGUMENTS = {
    "CSVLogger": {"save_dir", "name", "version", "prefix", "flush_logs_every_n_steps"},
    "TensorBoardLogger": {
        *("save_dir", "name", "version", "prefix", "default_hp_metric", "sub_dir", "log_graph"),
        *("max_queue", "flush_secs"),  # of its writer, whose defaults a parsed configuration holds
    },
    "MLFlowLogger": {"experiment_name", "run_name", "tags", "save_dir", "log_model", "prefix", "run_id"},
    "TrackioLogger": {"project", "name"},
    "WandbLogger": {
        *("name", "save_dir", "version", "offline", "id", "project", "log_model", "prefix", "checkpoint_name"),
        *("group", "job_type", "tags", "notes", "add_file_policy"),
    },
    "VLLMEngine": {"tis_cap", "max_mismatch_kl", "ahead", "retries", "patience"},
}
_FACTORIES = (Optimizer, LRScheduler, ReduceLROnPlateau)


@functools.cache
def class_names() -> tuple[str, ...]:
    """Every listed class by the name that is written, and by that of the file which defines it."""
    unseen = [*BACKBONES.items(), *OPTIONAL.items()]
    names = {f"{module}.{name}": None for module, classes in unseen for name in classes}
    for module, classes in (OURS | OTHERS).items():
        for name in classes:
            found = getattr(import_module(module), name)
            names |= dict.fromkeys((f"{module}.{name}", f"{found.__module__}.{found.__qualname__}"))
    return tuple(names)


def refuse_code(value: Any, where: str = "") -> None:
    """ValueError in one line for what is no data in a parsed configuration.

    A function, by its value or as a class path; anything for a parameter that takes a callable, but for the factories
    of optimizers and schedules; `dict_kwargs`; an argument of a logger or an engine that is not listed.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            _check_arguments(_class(value["class_path"], where), value, where)
        for key, item in value.items():
            refuse_code(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            refuse_code(item, f"{where}[{i}]")
    elif inspect.isroutine(value) or isinstance(value, functools.partial):
        raise ValueError(f"{where}: seen the function {value!r:.60}, expected a plain value or a class")


def _class(name: str, where: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not inspect.isclass(found):
        raise ValueError(f"{where}: seen {name!r:.80}, expected a class: functions are not called by a configuration")
    return found


def _check_arguments(cls: type, given: dict[str, Any], where: str) -> None:
    if given.get("dict_kwargs"):
        raise ValueError(f"{where}.dict_kwargs: seen some, expected the arguments that {cls.__name__} names")
    arguments = given.get("init_args") or {}
    arguments = vars(arguments) if isinstance(arguments, Namespace) else arguments
    listed = LISTED_ARGUMENTS.get(cls.__name__)
    defaults = {name: default for base in reversed(cls.__mro__) for name, default in _defaults(base)}
    for name, value in arguments.items():
        if value is None or value == "" or value is defaults.get(name):
            continue
        if name in _callables(cls):
            raise ValueError(f"{where}.init_args.{name}: seen {value!r:.60}, expected none: it would be called")
        if listed is not None and name not in listed and value != defaults.get(name):
            raise ValueError(
                f"{where}.init_args.{name}: seen {value!r:.60}, expected one of {', '.join(sorted(listed))} "
                f"(addresses and accounts of a {cls.__name__} are the environment's)"
            )


def _defaults(cls: type) -> Iterator[tuple[str, Any]]:
    init = vars(cls).get("__init__")
    if inspect.isfunction(init):
        for name, parameter in inspect.signature(init).parameters.items():
            yield name, parameter.default


@functools.cache
def _callables(cls: type) -> frozenset[str]:
    """The parameters of a class that take something to call, but for the factories of optimizers and schedules."""
    names: set[str] = set()
    for init in (vars(base).get("__init__") for base in cls.__mro__):
        if inspect.isfunction(init):
            try:
                hints = get_type_hints(init)
            except (NameError, TypeError, AttributeError):  # names that only a type checker imports
                hints = init.__annotations__
            names |= {name for name, hint in hints.items() if _takes_code(hint)}
    return frozenset(names)


def _takes_code(hint: Any) -> bool:
    if isinstance(hint, str):
        return "Callable" in hint and not hint.startswith(("OptimizerCallable", "LRSchedulerCallable"))
    if hint is Callable or get_origin(hint) is Callable:
        made = get_args(hint)[-1] if get_args(hint) else None
        kinds = [kind for kind in get_args(made) or (made,) if kind is not NoneType]
        return not all(inspect.isclass(kind) and issubclass(kind, _FACTORIES) for kind in kinds)
    return any(_takes_code(one) for one in get_args(hint) if not isinstance(one, list))
