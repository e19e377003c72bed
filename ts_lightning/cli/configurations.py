"""Configurations by the names they are shipped under: `-c fit/toy_twist.yaml` anywhere."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ts_lightning.cli.nearest import nearest

SHIPPED = Path(__file__).parents[1] / "configs"
OVER = "over"  # the key of an overlay that names the configuration below it
WHOLE = ("mix", "val", "test", "predict")  # sources by name: an overlay's stand in place of those below it


def find_configuration(name: str) -> Path:
    """A file of this path, else the shipped one of this name; ValueError with the nearest names for neither.

    `fit/toy_twist.yaml`, `fit/toy_twist` and `configs/fit/toy_twist.yaml` are one shipped configuration.
    """
    if Path(name).is_file():
        return Path(name)
    short = name.removeprefix("configs/")
    for path in (SHIPPED / short, SHIPPED / f"{short}.yaml"):
        if not Path(short).is_absolute() and path.is_file():
            return path
    known = [path.relative_to(SHIPPED).as_posix() for path in sorted(SHIPPED.glob("*/*.yaml"))]
    raise FileNotFoundError(f"configuration: seen {name!r}, which is no file, expected {nearest(short, known)}")


def layers(path: Path, above: Sequence[Path] = ()) -> list[str]:
    """The values of --config that stand for a configuration: an overlay is preceded by what it lies over."""
    text = path.read_text()
    if not text.startswith(f"{OVER}:") and f"\n{OVER}:" not in text:
        return [str(path)]
    import yaml

    if path in above:
        raise ValueError(f"{path}: seen an overlay that lies over itself, expected another file after `{OVER}:`")
    content = yaml.safe_load(text)
    below = content.pop(OVER)
    return [*layers(find_configuration(str(below)), [*above, path]), json.dumps(content)]


def shipped(kind: str) -> list[str]:
    """The names of the shipped configurations of a kind: fit, eval or trainer."""
    return [f"{kind}/{path.name}" for path in sorted(SHIPPED.glob(f"{kind}/*.yaml"))]


def verb_description(verb: str) -> str:
    """What `fit`, `validate`, `test` and `predict` do, an example, and the configurations that they take."""
    about, example, kinds = {
        "fit": (
            "Train by a configuration; the same command goes on with a run that was stopped.",
            "-c fit/toy_twist.yaml --trainer.max_steps 100",
            ("fit", "trainer"),
        ),
        "validate": (
            "The figures of the validation suites; a checkpoint brings its own model and data, -c lies over them.",
            "--ckpt_path last.ckpt -c eval/toy.yaml",
            ("eval",),
        ),
        "test": (
            "As validate, on what the configuration names for testing.",
            "--ckpt_path last.ckpt -c eval/toy.yaml",
            ("eval",),
        ),
        "predict": (
            "Answers to the suites as JSON lines, in <default_root_dir>/predictions.jsonl.",
            "--ckpt_path last.ckpt -c eval/toy.yaml --pictures 12 --trainer.default_root_dir outputs/answers",
            ("eval",),
        ),
    }[verb]
    lists = "\n".join(textwrap.fill(f"-c {kind}: {', '.join(shipped(kind))}", 110) for kind in kinds)
    return f"{about}\n\n    ts-lightning {verb} {example}\n\n{lists}"


def read_configuration(name: str) -> dict[str, Any]:
    """The values of a configuration, those of an overlay over what is below it, as a command takes them.

    ValueError for no mapping.
    """
    import yaml

    merged: dict[str, Any] = {}
    for layer in layers(find_configuration(name)):
        try:
            content = yaml.safe_load(layer if layer.startswith("{") else Path(layer).read_text())
        except yaml.YAMLError as error:
            raise ValueError(
                f"{name}: seen no YAML ({' '.join(str(error).split())}), expected a configuration"
            ) from None
        if not isinstance(content, dict):
            raise ValueError(f"{name}: seen {type(content).__name__}, expected a configuration")
        merged = _over(merged, content)
    return merged


def _over(below: Any, above: Any) -> Any:
    """Mappings are merged but for sources by name, anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: value if key in WHOLE else _over(below.get(key), value) for key, value in above.items()}


def named_configurations(words: Sequence[str]) -> list[str]:
    """Words of a command with every `-c NAME` as the paths of the shipped configurations.

    A list of callbacks or loggers stands in place of the one below it: the parser would take two lists of one length
    item by item, with what the lower ones say and the upper ones do not.
    """
    return list(_replaced(words))


def _replaced(words: Sequence[str]) -> Iterator[str]:
    given, first = iter(words), True
    for word in given:
        option, mark, value = word.partition("=")
        if option not in ("-c", "--config"):
            yield word
            continue
        value = value if mark else next(given, "")
        text = value.lstrip().startswith("{")  # a configuration as text
        for layer in [value] if text else layers(find_configuration(value)):
            if not first and (lists := _lists_of_objects(layer)):
                yield from (option, json.dumps({"trainer": dict.fromkeys(lists)}))
            yield from (option, layer)
            first = False


def _lists_of_objects(layer: str) -> list[str]:
    """The trainer's arguments that a layer gives as lists of objects; what is wrong in it is the parser's to say."""
    import yaml

    with suppress(yaml.YAMLError, OSError, AttributeError):
        content = yaml.safe_load(layer if layer.lstrip().startswith("{") else Path(layer).read_text())
        trainer = content.get("trainer") or {}
        return [name for name, value in trainer.items() if isinstance(value, list) and any(map(_is_object, value))]
    return []


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value
