"""Shards of this project, as they are: those of version 1, a photo with every question, come out with shared photos."""

from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.source import EXCLUDED, Pictures


def read(path: str | Path, pictures: Pictures | None = None) -> Iterator[Sample]:
    """Every question of the tars that `path`, a tar or a glob, names; questions that can't be read are left out."""
    reader, pictures = ShardReader(index_shards(str(path))), pictures or Pictures()
    for i in range(len(reader)):
        try:
            sample = reader.read(i)
        except ValueError as error:
            pictures.dropped.note("records that can't be read", str(error))
            continue
        if out := next((image.name for image in sample.images if pictures.is_excluded(image.name)), None):
            pictures.dropped.note(EXCLUDED, out, stops=False)
            continue
        yield sample
