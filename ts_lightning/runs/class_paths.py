"""Objects as plain {class_path, init_args}, and back: what configurations and checkpoints store."""

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from torch import nn

from ts_lightning.runs.allowed_classes import class_names, refuse_code

EXTRA_VARIABLE = "TS_LIGHTNING_CLASS_PREFIXES"
FLAG = "--allow_classes"
# Where classes are now that a stored file may name by the place that they had when it was written.
MOVED = {
    f"ts_lightning.training.{old}": f"ts_lightning.runs.{new}"
    for new, names in {
        "CheckpointIO": ("CheckpointIO", "checkpoint_io.CheckpointIO"),
        "FSDP2Strategy": ("FSDP2Strategy", "fsdp2.FSDP2Strategy"),
        "SaveCheckpoints": ("SaveCheckpoints", "save_checkpoints.SaveCheckpoints"),
        "SkipNonFinite": ("SkipNonFinite", "nonfinite.SkipNonFinite"),
        "ZeRO2Strategy": ("ZeRO2Strategy", "zero2.ZeRO2Strategy"),
    }.items()
    for old in names
}
# Arguments of a class that a stored file may have and that are none today.
DROPPED = {"GRPO": ("loss_type", "ratio", "clip_eps")}  # `algorithm` has them now; it answers no question
_PLAIN = (str, int, float, bool, type(None))


def restrict_class_paths() -> None:
    """From now on a configuration or a checkpoint names the classes of `allowed_classes` only; others are not imported.

    Packages of your own are added by name: --allow_classes my_package on the command line, or
    TS_LIGHTNING_CLASS_PREFIXES=my_package,other.part
    """
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*class_names(), *_names(os.environ.get(EXTRA_VARIABLE, ""), EXTRA_VARIABLE)],
        instantiate_subclass_spec_in_any=False,
    )


def take_flag(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """`args` without every `--allow_classes NAME[,NAME]`, and the names; ValueError for one that is no dotted name."""
    rest: list[str] = []
    names: list[str] = []
    given = iter(args)
    for arg in given:
        if arg == FLAG or arg.startswith(FLAG + "="):
            value = arg.partition("=")[2] if "=" in arg else next(given, "")
            found = _names(value, FLAG)
            if not found:
                raise ValueError(f"{FLAG}: seen no name, expected that of a package: {FLAG} my_package")
            names += found
        else:
            rest.append(arg)
    return rest, names


@contextmanager
def allowing(names: Sequence[str]) -> Iterator[None]:
    """Inside, the names are allowed beside those of the environment, here and in the processes that are started."""
    before = os.environ.get(EXTRA_VARIABLE)
    if names:
        os.environ[EXTRA_VARIABLE] = ",".join([*([before] if before else []), *names])
    try:
        restrict_class_paths()
        yield
    finally:
        if before is not None:
            os.environ[EXTRA_VARIABLE] = before
        else:
            os.environ.pop(EXTRA_VARIABLE, None)
        if names:
            set_parsing_settings(import_path_denylist=list(names))
            restrict_class_paths()  # what is listed stays allowed, by whatever name it was given


def not_from_a_file(value: str) -> NoReturn:
    """The type of the option in a parser: the flag was taken out before, so what arrives here is a file's."""
    expected = f"expected {FLAG} on the command line or {EXTRA_VARIABLE}: a configuration cannot allow its own classes"
    raise ValueError(f"seen {value!r} in a configuration, {expected}")


def _names(text: str, where: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{where}: seen {name!r}, expected the name of a package, such as my_package or my.module")
    return names


def renamed(value: Any) -> Any:
    """`value` of a stored file: today's names for what has moved (`MOVED`), without what is gone (`DROPPED`)."""
    if isinstance(value, dict):
        gone = DROPPED.get(str(value.get("class_path")).rpartition(".")[2], ())
        if gone and isinstance(value.get("init_args"), dict):
            value = {**value, "init_args": {k: v for k, v in value["init_args"].items() if k not in gone}}
        return {key: renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return MOVED.get(value, value) if isinstance(value, str) else value


def plain(value: Any, where: str) -> Any:
    """`value` in plain types: containers of str, int, float, bool, None, and {class_path, init_args} for objects.

    Understood are classes, `functools.partial` of classes, dataclasses, and modules that carry their constructor
    arguments in `init_args`. ValueError "<where>: seen ..., expected ..." for anything else.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if inspect.isclass(value):
        return _spec(value, {}, where)
    if isinstance(value, functools.partial) and inspect.isclass(value.func) and not value.args:
        return _spec(value.func, value.keywords, where)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _spec(type(value), fields, where)
    if isinstance(value, nn.Module) and hasattr(value, "init_args"):
        return _spec(type(value), dict(value.init_args), where)  # type: ignore[arg-type]
    kind = type(value).__name__
    raise ValueError(
        f"{where}: seen {kind} {str(value)[:60]!r}, expected a plain value, a class, a functools.partial of a class or "
        "a module of ts_lightning.models: checkpoints store nothing else"
    )


def _spec(cls: type, init_args: dict[str, Any], where: str) -> dict[str, Any]:
    class_path = f"{cls.__module__}.{cls.__qualname__}"
    if "<locals>" in class_path:
        raise ValueError(f"{where}: seen local class {cls.__qualname__}, expected one that can be imported")
    return {"class_path": class_path, "init_args": {k: plain(v, f"{where}.{k}") for k, v in init_args.items()}}


def instantiate(base: type, class_path: str, init_args: dict[str, Any]) -> Any:
    """Build the object that a plain description names; it has to be a `base`, and allowed, or ValueError."""
    restrict_class_paths()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "it", fail_untyped=False)
    try:
        config = parser.parse_object({"it": {"class_path": class_path, "init_args": init_args}})
    except ArgumentError as error:
        raise ValueError(one_line(error).removeprefix("it: ")) from None
    refuse_code(config["it"], base.__name__)
    try:
        return parser.instantiate(config).it
    except ValueError as error:
        raise ValueError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of a user's error on one line, without the noise of union types and tracebacks."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    if lines and (caught := re.match(r"Caught (\w+) in DataLoader worker", lines[0])):  # torch appends the traceback
        lines = [re.sub(rf"^[\w.]*\b{caught[1]}: ", "", lines[-1])]
    noise = (
        "Does not validate against any of the Union",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Given value",
        "Subclass types expect one of",
        "a class path (str)",
        "a dict with",
    )
    lines = [line for line in lines if line and not line.startswith(noise) and line != "Expected a <class 'str'>"]
    reasons = [line for line in lines if not line.startswith("Not a valid subclass")]  # said of any list with a fault
    text = " ".join(lines if all(line.endswith(":") for line in reasons) else reasons)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    where = "install it, or set PYTHONPATH=. where it is a file of this folder"
    text = re.sub(r"No module named '[^']+'", rf"\g<0>: {where}", text)
    allowed = f"expected a class of ts_lightning.runs.allowed_classes (of your own packages: {FLAG} NAME)"
    text = re.sub(
        r"denied by the .* entry of the import path denylist\. Add the import path .* to allow it\.", allowed, text
    )
    return text[:1000] or type(error).__name__
