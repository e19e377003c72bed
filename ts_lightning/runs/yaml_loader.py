"""Configurations as plain YAML of a size and a depth that people write: a stranger's file can't fill the memory."""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MAX_VALUES, MAX_DEPTH = 100_000, 100
_original = get_loader("yaml")


def restrict_yaml() -> None:
    """From now on a configuration that is nested too deeply, or grows by its aliases, is refused in one line."""
    set_loader("yaml", _load, (yaml.YAMLError,))


def _load(text: str) -> Any:
    _check_depth(text)
    if "&" in text and "*" in text:
        try:
            count = _count(yaml.compose(text, Loader=yaml.SafeLoader), {})
        except ValueError as error:
            raise yaml.YAMLError(str(error)) from None
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"seen {count} values with its aliases written out, expected at most {MAX_VALUES}")
    return _original(text)


def _check_depth(text: str) -> None:
    """Of the events, one after the other: the parser's own recursion has no part in it."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"seen values nested more than {MAX_DEPTH} deep, expected fewer")


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values `node` is, an alias counted each time it is named; ValueError for one that names itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] < 0:
        raise ValueError("seen an alias inside of what it names, expected none")
    return known[id(node)]
