"""Every place of a configuration or a checkpoint that takes a class or a callable, and four offers for each."""

import contextlib
import inspect
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import lightning as L
from jsonargparse import ArgumentError

from tests.reliability import tiny_run
from ts_lightning.cli.lightning import TSLightningCLI
from ts_lightning.runs.allowed_classes import BACKBONES, OPTIONAL, OTHERS, OURS
from ts_lightning.runs.class_paths import restrict_class_paths
from ts_lightning.runs.load import answering, stored_data, stored_model
from ts_lightning.training import BaseModule

Steps = tuple[str, ...]  # the keys that lead to a place; "[]" is a list of one
DEPTH = 4
LEAST_PLACES = 60
COMMANDS = ("fit", "validate", "test", "predict")
REFUSED = (ValueError, ArgumentError, OSError, SystemExit)
_PLAIN = (str, int, float, bool, type(None), list, dict, tuple, set, bytes, object)


class Place:
    """Keys that lead to a parameter, the configuration around it, and the classes that it expects."""

    def __init__(self, steps: Steps, around: dict[str, Any], bases: list[type], takes_text: bool = False) -> None:
        self.steps, self.around, self.bases, self.takes_text = steps, around, bases, takes_text

    def filled(self, offer: Any) -> dict[str, Any]:
        """The configuration with the offer in this place."""
        given = json.loads(json.dumps(self.around))
        inner = given
        for step in self.steps[:-1]:
            inner = inner[0] if step == "[]" else inner[step]
        last = self.steps[-1]
        if last == "[]":
            inner.append(offer)  # type: ignore[attr-defined]
        else:
            inner[last] = offer
        return given


@cache
def listed() -> dict[str, type]:
    """The classes that a configuration may name; those of libraries that are missing here can't be built either."""
    names = (
        OURS
        | OTHERS
        | BACKBONES
        | {name: names for name, names in OPTIONAL.items() if find_spec(name.partition(".")[0])}
    )
    modules = {name: import_module(name) for name in names}
    return {f"{module}.{cls}": getattr(modules[module], cls) for module, classes in names.items() for cls in classes}


def places(config: dict[str, Any], root: str) -> Iterator[Place]:
    """Each parameter of a class or callable type below the trainer, the model and the data."""
    for key in ("model", "data"):
        without = {name: value for name, value in config.items() if name != key}
        base = BaseModule if key == "model" else L.LightningDataModule
        yield Place((key,), without, [base])
        yield from _inside((key,), without, [base], config, root, DEPTH)
    for name, hint in _hints(L.Trainer).items():
        if (bases := _bases(hint)) is not None:
            for steps in (("trainer", name), ("trainer", name, "[]")):
                if steps[-1] == "[]" and not _takes(list, hint):
                    continue
                around = _with(config, steps[:2], [] if steps[-1] == "[]" else None)
                yield Place(steps, around, bases, _takes(str, hint))
                yield from _inside(steps, around, bases, config, root, DEPTH)


def _inside(
    steps: Steps, around: dict[str, Any], bases: list[type], config: dict[str, Any], root: str, depth: int
) -> Iterator[Place]:
    """The places in the arguments of every listed class that fits."""
    for path, cls in listed().items():
        if depth == 0 or not bases or not issubclass(cls, tuple(bases)):
            continue
        spec = {"class_path": path, "init_args": _required(cls, config, root)}
        filled = Place(steps, around, bases).filled(spec)
        for name, hint in _hints(cls).items():
            if (inner := _bases(hint)) is not None and name not in ("optimizer", "params")[: 2 * _is_made_later(cls)]:
                place = (*steps, "init_args", name)
                yield Place(place, filled, inner, _takes(str, hint))
                yield from _inside(place, filled, inner, config, root, depth - 1)


def _is_made_later(cls: type) -> bool:
    return cls.__module__.startswith("torch.optim") or cls.__name__ in ("WarmupCosine", "ReduceLROnPlateau")


def _required(cls: type, config: dict[str, Any], root: str) -> dict[str, Any]:
    """The arguments without a default."""
    vlm = json.loads(json.dumps(config["model"]["init_args"]["vlm"]))
    backbone = vlm["init_args"]["backbone"]
    if "LoRA" in cls.__name__:
        vlm = {"class_path": "ts_lightning.models.LoRAVLM", "init_args": {"backbone": backbone}}
    fixed = {"vlm": vlm, "backbone": backbone, "monitor": "x", "save_dir": root, "pretrained": root, "shards": "x.tar"}
    fixed |= {"step_size": 1, "gamma": 0.9, "milestones": [1], "T_max": 1, "T_0": 1, "max_lr": 1.0}
    needed: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if init := vars(base).get("__init__"):
            with contextlib.suppress(ValueError, TypeError):
                for name, parameter in inspect.signature(init).parameters.items():
                    if name in fixed and parameter.default is inspect.Parameter.empty:
                        needed[name] = fixed[name]
    return needed


def _hints(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        init = vars(base).get("__init__")
        if inspect.isfunction(init):
            try:
                found |= get_type_hints(init)
            except (NameError, TypeError, AttributeError):
                found |= {k: Callable for k, v in init.__annotations__.items() if "Callable" in str(v)}
    return {name: hint for name, hint in found.items() if name != "return"}


def _takes(kind: type, hint: Any) -> bool:
    return kind in (hint, get_origin(hint)) or any(_takes(kind, one) for one in get_args(hint))


def _bases(hint: Any) -> list[type] | None:
    """The classes that a type hint expects, [] for a bare callable; None for plain values."""
    if hint is Callable or get_origin(hint) is Callable:
        return [kind for kind in (_bases(get_args(hint)[-1]) or [] if get_args(hint) else [])]
    if inspect.isclass(hint) and get_origin(hint) is None:
        plain = hint in _PLAIN or hint.__module__ in ("builtins", "datetime", "pathlib", "typing", "torch")
        return None if plain else [hint]
    parts = [
        part for part in map(_bases, (arg for arg in get_args(hint) if not isinstance(arg, list))) if part is not None
    ]
    return [kind for part in parts for kind in part] if parts else None


def _with(config: dict[str, Any], steps: Steps, value: Any) -> dict[str, Any]:
    given = json.loads(json.dumps(config))
    if value is None:
        given[steps[0]].pop(steps[1], None)
    else:
        given[steps[0]][steps[1]] = value
    return given


def offers(place: Place, hit: Path, port: int) -> dict[str, Any]:
    """A function, the function that builds anything, classes of another base, a class that is not listed.

    A class of another base is none that the configuration around it names: so it is seen where it is kept.
    """
    shell = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(hit)]}}
    builder = {"args": ["touch", str(hit)], "init": shell}
    named = json.dumps(place.around)
    bases = tuple(place.bases) or (type(None),)
    wrong = [path for path, cls in listed().items() if not issubclass(cls, bases) and path not in named]
    address = {"pretrained_model_name_or_path": f"http://127.0.0.1:{port}/x"}
    by_name = {} if place.takes_text else {"function by its name": "lightning.pytorch.seed_everything"}  # else a text
    return by_name | {
        "function": {"class_path": "ts_lightning.cli.main", "init_args": {"args": ["quickstart"]}},
        "instantiate_class": {"class_path": "lightning.pytorch.cli.instantiate_class", "init_args": builder},
        "method of a listed class": {"class_path": "ts_lightning.models.LoRAVLM.from_pretrained", "init_args": {}},
        "wrong base": {"class_path": wrong[0]},
        "wrong base, of a library": {"class_path": next(path for path in wrong if not path.startswith("ts_lightning"))},
        "wrong base, a backbone": {"class_path": next((path for path in wrong if ".backbones." in path), wrong[-1])},
        "not listed": shell,
        "not listed, of another library": {
            "class_path": "transformers.AutoModel.from_pretrained",
            "init_args": address,
        },
    }


class _Parsed(Exception):
    pass


class _Parser(TSLightningCLI):
    """The command's parser, without what follows."""

    def __init__(self) -> None:
        self.ready = False
        with contextlib.suppress(_Parsed):
            super().__init__(["fit"])
        self.ready = True

    def parse_arguments(self, parser: Any, args: Any) -> None:
        if not self.ready:
            raise _Parsed
        super().parse_arguments(parser, args)

    def parse(self, command: str, given: dict[str, Any]) -> None:
        """ValueError or ArgumentError for what the command refuses."""
        with contextlib.redirect_stderr(io.StringIO()):
            self.parse_arguments(self.parser, [command, "--config", json.dumps(given)])


class Listener:
    """Counts connections to a port of this machine."""

    def __init__(self) -> None:
        self.socket, self.count = socket.create_server(("127.0.0.1", 0)), 0
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.count += 1


def from_checkpoint(parser: _Parser, given: dict[str, Any]) -> None:
    """What `validate --ckpt_path` reads of a checkpoint with this configuration."""
    checkpoint = {"state_dict": {}, "config": given}
    model = answering(stored_model(checkpoint, "x.ckpt"))
    parser.parse("validate", {"trainer": {}, "model": model, "data": stored_data(checkpoint, "x.ckpt")})


def walk(folder: Path, every: int = 1, commands: tuple[str, ...] = COMMANDS) -> dict[str, int]:
    """Offer everything everywhere (in each `every`th place); the counts.

    AssertionError names what was accepted, or says that too little was found or reached for the walk to mean anything.
    """
    hit, listener, accepted = folder / "HIT", Listener(), []
    root = folder / "run"
    config = tiny_run.config(tiny_run.write(folder / "shards", 4), root, 1)
    config["trainer"]["callbacks"] = []
    restrict_class_paths()
    parser = _Parser()
    before = {path for path in folder.rglob("*")}
    figures = {"places": 0, "checkpoint_fields": 0, "offers": 0, "not_reached": 0, "left_out": 0}
    every_place = list(places(config, str(root)))
    assert len(every_place) >= LEAST_PLACES, f"{len(every_place)} places: the walk does not see the parameters"
    every_place = every_place[::every]
    for command in commands:
        for place in every_place:
            try:
                parser.parse(command, place.around if place.steps[0] == "trainer" else config)
            except REFUSED:
                figures["not_reached"] += 1
                continue
            figures["places"] += 1
            for name, offer in offers(place, hit, listener.port).items():
                figures["offers"] += 1
                try:
                    parser.parse(command, place.filled(offer))
                    accepted.append(f"{command} {'.'.join(place.steps)}: {name}")
                except REFUSED:
                    pass
    for place in every_place:
        if place.steps[0] == "trainer":
            continue  # nothing of a checkpoint's trainer is read
        figures["checkpoint_fields"] += 1
        for name, offer in offers(place, hit, listener.port).items():
            figures["offers"] += 1
            left_out = place.filled(offer)
            try:
                from_checkpoint(parser, left_out)
            except REFUSED:
                continue
            stored = {"state_dict": {}, "config": left_out}
            kept = json.dumps([answering(stored_model(stored, "x")), stored_data(stored, "x")])
            figures["left_out"] += 1
            if (offer if isinstance(offer, str) else offer["class_path"]) in kept:
                accepted.append(f"checkpoint {'.'.join(place.steps)}: {name}")
    listener.socket.close()
    figures |= {"executed": int(hit.exists()), "connections": listener.count}
    figures["files"] = len({path for path in folder.rglob("*")} - before)
    assert figures["not_reached"] <= len(commands), figures
    assert figures["offers"] >= 8 * (figures["places"] + figures["checkpoint_fields"]) > 0, figures
    assert not accepted, f"{len(accepted)} accepted: {accepted[:8]}"
    assert not hit.exists()
    assert (figures["connections"], figures["files"]) == (0, 0), figures
    return figures
