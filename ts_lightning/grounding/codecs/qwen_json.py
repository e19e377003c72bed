"""JSON objects as models write them: keys in any order, single quotes, trailing commas, a cut end."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from ts_lightning.grounding.codecs.base import read_numbers

BOX_KEYS = ("bbox_2d", "bbox")
POINT_KEYS = ("point_2d", "point")

_STRING = r'"(?:[^"\\]|\\.)*+"|\'(?:[^\'\\]|\\.)*+\''
_LIST = r"\[(?:[^\[\]{}]|\[[^\[\]{}]{0,200}\]){0,2000}\]"
_MEMBER = re.compile(
    rf"\s*+,?\s*+({_STRING})\s*+:\s*+({_STRING}|{_LIST}|\{{[^{{}}]{{0,2000}}\}}|[-+.\w]{{1,40}}+)", re.DOTALL
)
_END = re.compile(r"\s*+,?\s*+\}")
_CUT = re.compile(r"\s*+(?:,[^{}<\[\]]*+)?\Z|\s*+,[^{}<\[\]]*+(?=<)")  # a last member that the answer's end cut off
_INNER = re.compile(r"\[([^\[\]]*)\]")


class JsonObject(NamedTuple):
    """An object of characters [start, end) that has a box or a point: its `key`, its lists of numbers, its label.

    `further` names the members that are none of these.
    """

    start: int
    end: int
    key: str
    numbers: list[list[float]]
    label: str | None
    further: tuple[str, ...] = ()


def json_objects(text: str, keys: Sequence[str] = (*BOX_KEYS, *POINT_KEYS)) -> list[JsonObject]:
    """The objects of a text that have one of `keys`, the first that they have, in order; never raises, in linear time.

    `numbers` has an empty list where the value holds anything but numbers. Several boxes of one key are several lists.
    """
    found, start = [], text.find("{")
    while start >= 0:
        one = _object(text, start, keys)
        if one is not None:
            found.append(one)
        start = text.find("{", start + 1 if one is None else one.end)
    return found


def _object(text: str, start: int, keys: Sequence[str]) -> JsonObject | None:
    members: dict[str, str] = {}
    end = start + 1
    while match := _MEMBER.match(text, end):
        members.setdefault(_unquoted(match[1]), match[2])
        end = match.end()
    key = next((key for key in keys if members.get(key, "")[:1] == "["), None)
    if key is None:
        return None
    if match := _END.match(text, end) or _CUT.match(text, end):
        end = match.end()
    label = members.get("label", "")
    known = _unquoted(label) or None if label[:1] in "\"'" else None
    further = tuple(name for name in members if name not in (key, "label"))
    return JsonObject(start, end, key, _lists(members[key]), known, further)


def _lists(value: str) -> list[list[float]]:
    inner = value[1:-1]
    parts = _INNER.findall(inner) if "[" in inner else [inner]
    return [read_numbers(part.replace('"', "").replace("'", "")) for part in parts]


def _unquoted(text: str) -> str:
    """What a string in double or single quotes says."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1].replace("\\'", "'")
