"""Samples in WebDataset shards: schema, index, exact order, collate and the LightningDataModule."""

from ts_lightning.data.datamodule import ShardDataModule, ShardSource
from ts_lightning.data.index import index_shards
from ts_lightning.data.sample import Sample

__all__ = ["Sample", "ShardDataModule", "ShardSource", "index_shards"]
