"""ts_lightning: teach vision-language models to ground without forgetting."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`ts_lightning.load(path)`: torch and Lightning are imported when it is asked for, not before."""
    if name == "load":
        from ts_lightning.runs.load import load

        return load
    raise AttributeError(f"module 'ts_lightning' has no attribute {name!r}")
