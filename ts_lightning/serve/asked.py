"""What a visitor asks, as JSON: checked before anything is computed from it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ts_lightning.grounding.regions import Region

MAX_QUESTION, MAX_TEXT, MAX_TEXTS = 4_000, 32_000, 200
MAX_IMAGES, MAX_REGIONS, MAX_POINTS = 16, 64, 256


@dataclass(frozen=True)
class Asked:
    """A conversation in which pictures still have the server's names; constrain: begun boxes are always finished."""

    images: list[str]
    regions: list[tuple[int, Region]]
    texts: list[str]
    task: str
    constrain: bool = False


def read_asked(body: bytes, tasks: Collection[str]) -> Asked:
    """{"images": [name], "regions": [{"image", "points": [[x, y]]}], "texts": [...], "task", "constrain"}.

    Coordinates are in [0, 1], "task" is one of `tasks`. ValueError in one line for anything else, and for more of
    anything than is allowed.
    """
    return _checked(read_json(body), tasks)


def read_json(body: bytes) -> dict[str, Any]:
    """The object of a request; ValueError in one line for anything else."""
    try:
        asked = json.loads(body)
    except RecursionError:
        raise ValueError("request: seen JSON that is nested too deep, expected a question") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"request: seen no JSON ({error}), expected a question") from None
    if not isinstance(asked, dict):
        raise ValueError(f"request: seen {type(asked).__name__}, expected an object")
    return asked


def _checked(asked: dict[str, Any], tasks: Collection[str]) -> Asked:
    texts = [read_text(text) for text in read_list(asked, "texts", MAX_TEXTS)]
    if len(texts) % 2 == 0 or not texts[-1].strip():
        raise ValueError("question: seen nothing, expected a question")
    if len(texts[-1]) > MAX_QUESTION:
        raise ValueError(f"question: seen {len(texts[-1])} characters, expected at most {MAX_QUESTION}")
    if (characters := sum(map(len, texts))) > MAX_TEXT:
        raise ValueError(f"conversation: seen {characters} characters, expected at most {MAX_TEXT}")
    images = [read_text(name) for name in read_list(asked, "images", MAX_IMAGES)]
    regions = [_region(number, one) for number, one in enumerate(read_list(asked, "regions", MAX_REGIONS), 1)]
    if asked.get("task") not in tasks:
        raise ValueError(f"task: seen {str(asked.get('task'))[:40]!r}, expected one of {', '.join(tasks)}")
    return Asked(images, regions, texts, asked["task"], read_flag(asked, "constrain"))


def read_list(holder: dict[str, Any], name: str, most: int, where: str = "request") -> list[Any]:
    """A list of at most so many things."""
    found = holder.get(name)
    if not isinstance(found, list):
        raise ValueError(f"{where}: {name}: seen {type(found).__name__}, expected a list")
    if len(found) > most:
        raise ValueError(f"{where}: {name}: seen {len(found)}, expected at most {most}")
    return found


def read_flag(holder: Mapping[str, Any], name: str) -> bool:
    """True or false; false where nothing is said."""
    value = holder.get(name)
    if value is not None and type(value) is not bool:
        raise ValueError(f"{name}: seen {str(value)[:40]!r}, expected true or false")
    return bool(value)


def read_text(value: Any, where: str = "request") -> str:
    """A text that can be written."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: seen {type(value).__name__}, expected text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: seen half a character (a surrogate), expected text")
    return value


def _region(number: int, region: Any) -> tuple[int, Region]:
    where = f"region #{number}"
    if not isinstance(region, dict):
        raise ValueError(f"{where}: seen {type(region).__name__}, expected an object")
    image, points = region.get("image"), read_list(region, "points", MAX_POINTS, where)
    if type(image) is not int or not 0 <= image < MAX_IMAGES:
        raise ValueError(f"{where}: image: seen {str(image)[:40]}, expected a whole number from 0")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(_in_unit, point)):
            raise ValueError(f"{where}: points: seen {str(point)[:40]}, expected pairs of numbers in [0, 1]")
    return image, Region(tuple((float(x), float(y)) for x, y in points))


def _in_unit(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # of any number of digits, NaN and infinity too
