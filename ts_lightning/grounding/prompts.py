"""Prompt templates: one text file a task, one template a line."""

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"


@cache
def templates(name: str) -> list[str]:
    """The templates of `templates/<name>.txt`, with `{phrase}` or `{question}`; ValueError for an unknown name."""
    path = _FOLDER / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.txt")))
        raise ValueError(f"prompt template: seen {name!r}, expected one of {known}")
    return [line for line in path.read_text().splitlines() if line.strip()]
