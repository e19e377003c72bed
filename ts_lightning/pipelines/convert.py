"""From a data set's own files to shards: what is left out is counted and named."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ts_lightning.data.manifest import Manifest, index_shards
from ts_lightning.data.sample import Sample
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines import converters
from ts_lightning.pipelines.converters.source import Dropped, Pictures, excluded_names

PAPER_SUBSETS = {"coco": 3582, "voc": 2062, "lvis": 6016}  # photos with at most 3 objects, TWIST & SCOUT 5.1


@dataclass(frozen=True)
class Conversion:
    """What every converter is told beside its own options.

    Args:
        out: folder for the shards
        path: the data set's folder or file
        prefix: shards are named PREFIX-000000.tar; the data set's name when missing
        maxcount: records of one shard at most
        images: folder of the pictures, where they are not below PATH
        exclude_images: text file of pictures to leave out: file names or COCO ids
        strict: stop at the first thing that would be left out
        subset: coco-regions: images, drawn by --seed; their ids go to OUT/PREFIX.ids.json
    """

    out: Path
    path: str | None = None
    prefix: str | None = None
    maxcount: int = 10_000
    images: Path | None = None
    exclude_images: Path | None = None
    strict: bool = False
    subset: int = 1000


@dataclass(frozen=True)
class Converted:
    """The shards, the records by subtask, the photos, and what was left out (all of it in `listing`)."""

    manifest: Manifest
    tasks: Counter[str]
    photos: int
    dropped: Dropped
    listing: Path


def reader(name: str) -> Callable[..., Iterator[Sample]]:
    """`read` of a converter."""
    return import_module(f"{converters.__name__}.{name.replace('-', '_')}").read


def convert(name: str, told: Conversion, options: Mapping[str, Any]) -> Converted:
    """Read a data set with its converter and its `options`, and write shards.

    ValueError for a data set that can't be read; the lines of what had been left out until then are its notes.
    """
    prefix = told.prefix or name.replace("-", "_")
    listing = told.out / f"{prefix}.left_out.txt"
    dropped = Dropped(told.strict, listing)
    tasks: Counter[str] = Counter()
    photos: set[str] = set()
    keys: set[str] = set()

    def counted() -> Iterator[Sample]:
        for sample in _samples(name, told, prefix, options, pictures):
            if len(sample.image_bytes) != len(sample.images):
                dropped.note("records without their pictures (--images DIR)", sample.images[0].name)
                continue
            if sample.key in keys:
                dropped.note("records whose id comes twice", sample.key)
                continue
            keys.add(sample.key)
            tasks[sample.subtask or sample.task] += 1
            photos.update(image.name for image in sample.images)
            yield sample

    try:
        excluded = excluded_names(told.exclude_images) if told.exclude_images else frozenset()
        pictures = Pictures(told.images, excluded, dropped)
        manifest = index_shards(write_shards(counted(), told.out, prefix, told.maxcount))
    except (OSError, ValueError) as error:
        dropped.close(keep=False)
        for line in dropped.lines():
            error.add_note(line)
        raise
    dropped.close()
    return Converted(manifest, tasks, len(photos), dropped, listing)


def _samples(
    name: str, told: Conversion, prefix: str, options: Mapping[str, Any], pictures: Pictures
) -> Iterator[Sample]:
    read = reader(name)
    if name != "coco-regions":
        if told.path is None and options.get("annotations") is None:
            raise ValueError(f"{name}: seen no PATH, expected the data set's folder or file")
        return read(told.path, pictures, **options)
    ids = import_module(read.__module__).subset(options["annotations"], told.subset, options["seed"])
    told.out.mkdir(parents=True, exist_ok=True)
    known = json.dumps({"seed": options["seed"], "image_ids": ids})
    (told.out / f"{prefix}.ids.json").write_text(known + "\n")
    return read(told.images, image_ids=ids, dropped=pictures.dropped, **options)


def subset_line(name: str, options: Mapping[str, Any], number: int, asked: int) -> str:
    """What the subset of few objects is, and its size beside the paper's."""
    named = [(key, options[key]) for key in ("split", "count_by", "crowd", "difficult") if key in options]
    chosen = ", ".join(f"{key.replace('_', '-')} {'all' if value is None else value}" for key, value in named)
    found = f"{number} photos with at most {options['max_objects']} objects ({chosen}), {asked} with a question"
    return f"{found}; the paper's subset: {PAPER_SUBSETS[name]} photos"
