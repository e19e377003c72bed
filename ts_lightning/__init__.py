"""ts_lightning: teach vision-language models to ground without forgetting."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["ask", "load"]


def __getattr__(name: str) -> Any:
    """`load(path)` and `ask(vlm, images, question)`: torch and Lightning are imported with them, not before."""
    if name == "load":
        from ts_lightning.runs.load import load

        return load
    if name == "ask":
        from ts_lightning.runs.ask import ask

        return ask
    raise AttributeError(f"module 'ts_lightning' has no attribute {name!r}")
