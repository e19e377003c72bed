"""The command `ts-lightning`."""

from ts_lightning.cli.lightning import main

__all__ = ["main"]
