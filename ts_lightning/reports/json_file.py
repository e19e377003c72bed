"""A result as a JSON file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_place(path: Path, option: str = "--out") -> None:
    """ValueError for a folder in the place of a file, before the work that the file is to hold."""
    if path.is_dir():
        raise ValueError(f"{option}: seen the folder {path}, expected a file, such as {path / 'result.json'}")


def write_json(path: Path, value: Any) -> None:
    """Write nested plain values, NaN and infinity as null, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(strict_json(value), indent=1, allow_nan=False) + "\n")


def strict_json(value: Any) -> Any:
    """The same nested values for strict JSON: tuples as lists, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(k): strict_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
