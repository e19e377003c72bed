"""Figures for the card of what is exported: from a JSON file, or from the run or the folder that it comes from."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts_lightning.grounding.foreign_text import shown
from ts_lightning.models.package import read_checkpoint
from ts_lightning.runs.metrics_log import read_metrics

_LISTED = re.compile(r"^- (.+): (-?\d+\.\d+)$", re.MULTILINE | re.ASCII)  # as `models.package.listed_scores` writes


def read_scores(path: Path) -> dict[str, float]:
    """The numbers of a JSON object, nested names joined by dots ("tuned.miou"); ValueError where there are none."""
    try:
        stored = json.loads(path.read_text())
        found = dict(_numbers(stored)) if isinstance(stored, dict) else {}
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"scores {path}: seen no JSON ({error}), expected an object of numbers") from None
    if not found:
        raise ValueError(f"scores {path}: seen no named number, expected an object of numbers, nested or not")
    return found


def own_scores(checkpoint: Path) -> dict[str, float]:
    """The last validation of the run up to this checkpoint in its `checkpoints/`, or what the card of a folder has."""
    if (card := checkpoint / "README.md").is_file():
        section = card.read_text(errors="replace").partition("\n## Scores\n")[2].partition("\n## ")[0]
        return {shown(name): float(value) for name, value in _LISTED.findall(section)}
    if not checkpoint.is_file() or checkpoint.absolute().parent.name != "checkpoints":
        return {}
    steps = read_checkpoint(checkpoint).get("global_step", 0)
    found: dict[str, float] = {}
    for row in read_metrics(checkpoint.absolute().parent.parent):
        done = row["step"] + 1
        values = {name: value for name, value in row.items() if name.startswith("val/")}
        if values and done <= steps:
            found = {f"{name} after {done} steps": float(value) for name, value in values.items()}
    return found


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number below `value`; texts, lists and truth values are no scores."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)
