"""Prompt templates: one text file a task, one template a line."""

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"


@cache
def templates(name: str) -> list[str]:
    """The templates of `templates/<name>.txt`, with `{phrase}` or `{question}`; ValueError for an unknown name."""
    path = _FOLDER / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(str(p.relative_to(_FOLDER).with_suffix("")) for p in _FOLDER.rglob("*.txt")))
        raise ValueError(f"prompt template: seen {name!r}, expected one of {known}")
    return [line for line in path.read_text().splitlines() if line.strip()]


GROUNDING_TEMPLATES = ("localization", "rec", "scout", "caption_grounded", "detection")


@cache
def _instruction() -> re.Pattern[str]:
    lines = [re.split(r"\\{\w+\\}", re.escape(line)) for name in GROUNDING_TEMPLATES for line in templates(name)]
    return re.compile("|".join(".+".join(parts) for parts in lines), re.IGNORECASE | re.DOTALL)


def carries_grounding_instruction(prompt: str) -> bool:
    """Whether a prompt is one of the grounding templates, filled in: the rule where no task router is installed."""
    return _instruction().search(prompt) is not None
