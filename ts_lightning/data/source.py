"""What a configuration says about a set of records, and the manifest that comes of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_lightning.data.manifest import Manifest, check_manifest, index_shards

TRAIN_SHARDS = "@train"


@dataclass
class ShardSource:
    """Where records come from: paths, globs or URLs of tars, and which of the records.

    With tags, a record needs one of `include_tags` and none of `exclude_tags`. Of what is left the first
    `max_samples` are used (None: all), so smaller choices lie within larger ones. `weight` is the share in a mixture.
    The word "@train" in a suite stands for the training source's shards, and for its choice of them where the suite
    makes none (scores on them are memorization). `box_noise`
    moves each edge of a question's boxes by up to this share of the side (`data.noise`). `after_question` is asked
    behind every record's last question as it stands: unlike a record's text it may write marks of the model, such as
    those of a box, but no picture. With `manifest`, a file of ts-lightning data index, every shard's bytes are checked
    against it at the start.

    How a suite is scored: `protocol` (one of docs/evaluation.md; without one every question by its own truth),
    `reading` (whose rule reads an answer: the protocol's first when None) and `annotations` (the data set's own file,
    for protocols that need it).
    """

    shards: str | list[str]
    max_samples: int | None = None
    box_noise: float = 0.0
    after_question: str = ""
    weight: float = 1.0
    include_tags: list[str] | None = None
    exclude_tags: list[str] | None = None
    manifest: str | None = None
    protocol: str | None = None
    reading: str | None = None
    annotations: str | None = None

    def load(self) -> Manifest:
        """Index, check and select; ValueError in one line for what can't be used."""
        whole = index_shards(self.shards)
        if self.manifest is not None:
            check_manifest(whole, Path(self.manifest))
        return whole.with_tags(self.include_tags, self.exclude_tags).head(self.max_samples)


def source_of(value: Any) -> ShardSource:
    """A source, or its shards alone (a path or several), or its fields by name."""
    if isinstance(value, ShardSource):
        return value
    if isinstance(value, dict):
        return ShardSource(**value)
    return ShardSource([str(one) for one in value] if isinstance(value, list | tuple) else str(value))


def mixture_sha256(parts: list[tuple[str, float, str]]) -> str:
    """Names a mixture: name, weight and manifest of its sources in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
