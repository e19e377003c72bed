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
def _instructions() -> list[list[str]]:
    """The fixed parts of every grounding template, in lower case; between two of them stands what is filled in."""
    lines = [line.lower() for name in GROUNDING_TEMPLATES for line in templates(name)]
    return [re.split(r"\{\w+\}", line) for line in dict.fromkeys(lines)]


def carries_grounding_instruction(prompt: str) -> bool:
    """Whether a prompt is one of the grounding templates, filled in: the rule where no task router is installed.

    Takes time in proportion to the prompt's length.
    """
    prompt = prompt.lower()
    return any(_holds(prompt, parts) for parts in _instructions())


def _holds(text: str, parts: list[str]) -> bool:
    """Whether the parts follow each other in the text with at least one character between two.

    The earliest place of each part leaves the others the most room, so no other place has to be tried.
    """
    end = -1
    for part in parts:
        start = text.find(part, end + 1)
        if start < 0:
            return False
        end = start + len(part)
    return True
