"""Samples in WebDataset shards: schema, index, exact order, collate and the LightningDataModule."""

from typing import TYPE_CHECKING, Any

from ts_lightning.data.manifest import index_shards
from ts_lightning.data.sample import Sample

if TYPE_CHECKING:
    from ts_lightning.data.datamodule import ShardDataModule, ShardSource

__all__ = ["Sample", "ShardDataModule", "ShardSource", "index_shards"]


def __getattr__(name: str) -> Any:
    """Import Lightning only with the datamodule: tools and loader workers start without it."""
    if name in ("ShardDataModule", "ShardSource"):
        from ts_lightning.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
