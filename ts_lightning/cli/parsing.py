"""The parser of a verb: parameters are options, the docstring has a sentence for each."""

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from ts_lightning.cli.nearest import nearest

# Parameters that take words as they are: the dotted options of `fit` and `predict`, and what follows `--`.
OVERRIDES, REST = "overrides", "rest"
_DOTTED = re.compile(r"--(trainer|model|data)[.=]")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*?\]|Errors:|Given value type:.*"
)
_CHOICE = re.compile(
    r'Parser key "(?P<option>\w+)": Expected a typing.Literal\[(?P<names>.*)\]\. Got value: (?P<seen>.*)'
)


def call(function: Callable[..., int | None], words: Sequence[str], prog: str) -> int:
    """Run a verb on the words of its command line; ValueError for words that do not fit its signature.

    A verb whose one parameter is `words` reads them by itself.
    """
    if list(inspect.signature(function).parameters) == ["words"]:
        return function(words) or 0
    arguments, keywords = read(function, words, prog)
    return function(*arguments, **keywords) or 0


def read(function: Callable[..., Any], words: Sequence[str], prog: str) -> tuple[list[Any], dict[str, Any]]:
    """What `function` is called with: a parameter before `/` or a starred one is positional, others are options.

    A parameter whose type is a dataclass stands for the fields of it.
    """
    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    dotted: list[str] = []
    rest: list[str] = []
    if OVERRIDES in parameters:
        words, dotted = take_dotted(words)
    if REST in parameters and "--" in words:
        at = list(words).index("--")
        words, rest = words[:at], list(words[at + 1 :])
    parser, known = build(function, prog)
    values = vars(parse(parser, words, prog, known))
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name == OVERRIDES:
            keywords[name] = dotted
        elif name == REST:
            keywords[name] = rest
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments += values[name] or []
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            arguments.append(values[name])
        elif dataclasses.is_dataclass(hints[name]):
            fields = [field.name for field in dataclasses.fields(hints[name])]
            keywords[name] = hints[name](**{field: values[field] for field in fields})  # type: ignore[operator]
        else:
            keywords[name] = values[name]
    return arguments, keywords


def build(function: Callable[..., Any], prog: str) -> tuple[ArgumentParser, list[str]]:
    """The parser of a verb, and its options."""
    about, sentences = documented(function)
    parser, known = new_parser(prog, about), ["--help"]
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in (OVERRIDES, REST):
            continue
        if dataclasses.is_dataclass(hints[name]):
            known += add_fields(parser, hints[name])
        elif parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument(name, nargs="+", type=hints[name], metavar=name.upper(), help=sentences[name])
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            parser.add_argument(name, type=hints[name], help=sentences[name])
        else:
            known.append(add_option(parser, name, hints[name], parameter.default, sentences[name]))
    return parser, known


def add_fields(parser: ArgumentParser, cls: Any, skip: Container[str] = ()) -> list[str]:
    """The fields of a dataclass as options; returns them."""
    sentences, hints = documented(cls)[1], get_type_hints(cls)
    return [
        add_option(
            parser,
            field.name,
            hints[field.name],
            inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            sentences[field.name],
        )
        for field in dataclasses.fields(cls)
        if field.name not in skip
    ]


def new_parser(prog: str, about: str) -> ArgumentParser:
    """A parser that raises its errors and prints its text as it is written."""
    return ArgumentParser(
        prog=prog, description=about, exit_on_error=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_option(parser: ArgumentParser, name: str, hint: Any, default: Any, sentence: str) -> str:
    """One option, which is returned: bool is a switch, a list takes several words, a tuple one each time."""
    required = default is inspect.Parameter.empty
    if hint is bool:
        parser.add_argument(f"--{name}", action="store_true", help=sentence)
        return f"--{name}"
    options: dict[str, Any] = {"required": required, "metavar": metavar(hint)}
    if get_origin(hint) is list:
        options |= {"nargs": "+", "action": "extend", "type": get_args(hint)[0]}
        default = default if required else list(default)
    elif get_origin(hint) is tuple:
        options |= {"nargs": 1, "action": "extend", "type": get_args(hint)[0]}
    else:
        options |= {"type": hint}
    if not required:
        options["default"] = default
        if default not in (None, []):
            sentence = f"{sentence} (default: {default})"
    elif required:
        sentence = f"{sentence} (required)"
    parser.add_argument(f"--{name}", help=sentence, **options)
    return f"--{name}"


def metavar(hint: Any) -> str | None:
    """What stands for a value in the help: a choice's own list, else one word for its kind."""
    kinds = {Path: "PATH", int: "N", float: "X", str: "TEXT"}
    for kind in (hint, *get_args(hint)):
        if kind in kinds:
            return kinds[kind]
    return None


def documented(function: Any) -> tuple[str, dict[str, str]]:
    """The text of a docstring before `Args:`, its last section, and the sentence of each argument."""
    text = inspect.getdoc(function) or ""
    about, _, rest = text.partition("\nArgs:\n")
    found: dict[str, str] = {}
    for line in textwrap.dedent(rest).splitlines():
        if match := re.match(r"(\w+): (.*)", line):
            found[match[1]] = match[2]
        elif found and line.strip():
            found[[*found][-1]] += " " + line.strip()
    named = set(inspect.signature(function).parameters) - {OVERRIDES, REST}
    assert named <= set(found), (
        f"{function.__name__}: no sentence of {named - set(found)} below `Args:`, the last section"
    )
    return about.strip(), {name: sentence.replace("%", "%%") for name, sentence in found.items()}


def parse(parser: ArgumentParser, words: Sequence[str], prog: str, known: Sequence[str]) -> Any:
    """The parsed words; ValueError that names the nearest option for one that is not `known`.

    Dashes in the name of an option are underscores.
    """
    words = [underscored(word) for word in words]
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in ("--", "--help", *known):
            raise ValueError(f"{option}: seen an option that `{prog}` does not have, expected {nearest(option, known)}")
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        text = " ".join(_NOISE.sub("", str(error)).split())
        raise ValueError(f"{prog}: {_CHOICE.sub(_choice, text)}") from None


def _choice(match: re.Match) -> str:
    names = ", ".join(re.findall(r"'([^']*)'", match["names"]))
    return f"--{match['option']}: seen {match['seen']!r}, expected one of {names}"


def underscored(word: str) -> str:
    """An option under its parameter's name: --max-objects and --max_objects are one."""
    name, mark, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{mark}{value}" if word.startswith("--") else word


def take_dotted(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words without those of `--trainer.X`, `--model.X` and `--data.X`, and these with their values."""
    rest: list[str] = []
    dotted: list[str] = []
    given = iter(words)
    for word in given:
        if not _DOTTED.match(word):
            rest.append(word)
        elif "=" in word:
            dotted.append(word)
        else:
            dotted += [word, next(given, "")]
    return rest, dotted
