"""What somebody may have meant by a name that does not exist."""

import difflib
from collections.abc import Iterable


def nearest(seen: str, names: Iterable[str]) -> str:
    """Those of the names that are spelled like `seen`, else all of them, as words of a message."""
    names = list(names)
    close = difflib.get_close_matches(seen, names, n=3, cutoff=0.5)
    if not close:
        close = [name for name in names if seen and (seen in name or name.split("/")[-1] in seen)][:3]
    return " or ".join(close) if close else f"one of {', '.join(names)}"
