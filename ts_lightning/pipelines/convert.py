"""From a data set's own files to shards: what is left out is counted and named."""

import hashlib
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
from ts_lightning.pipelines.converters.source import Dropped, Excluded, Pictures, excluded_names, files_of

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
        exclude_images: file of pictures to leave out: file names or COCO ids, one a line, or JSON, or a table
        list_images: write the names of the data set's pictures to this file, and no shards; for --exclude_images
        strict: stop at the first thing that would be left out
        subset: coco-regions: images, drawn by --seed; their ids go to OUT/PREFIX.ids.json
    """

    out: Path = Path("data_shards")
    path: str | None = None
    prefix: str | None = None
    maxcount: int = 10_000
    images: Path | None = None
    exclude_images: Path | None = None
    list_images: Path | None = None
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
    excluded: Excluded


def reader(name: str) -> Callable[..., Iterator[Sample]]:
    """`read` of a converter."""
    return import_module(f"{converters.__name__}.{name.replace('-', '_')}").read


def convert(name: str, told: Conversion, options: Mapping[str, Any]) -> Converted:
    """Read a data set with its converter and its `options`, and write shards.

    ValueError for a data set that can't be read, or of which nothing is kept; the lines of what had been left out until
    then are its notes. The whole list is kept with shards, and where it says why there are none.
    """
    prefix = told.prefix or name.replace("-", "_")
    listing = told.out / f"{prefix}.left_out.txt"
    dropped = Dropped(told.strict, listing)
    tasks: Counter[str] = Counter()
    photos: set[str] = set()
    keys: dict[str, list[str]] = {}
    nothing_kept = False

    def counted() -> Iterator[Sample]:
        nonlocal nothing_kept
        for sample in _samples(name, told.path, told, options, pictures):
            if len(sample.image_bytes) != len(sample.images):
                dropped.note("records without their pictures (--images DIR)", sample.images[0].name)
                continue
            mark = hashlib.sha256(b"\0".join([sample.to_json(), *sample.image_bytes])).hexdigest()
            if sample.key in keys:
                if mark in keys[sample.key]:
                    dropped.note("records that come twice", sample.key)
                    continue
                keys[sample.key].append(mark)  # another one under the same name: two files that number their rows alike
                sample.key, sample.id = f"{sample.key}-{mark[:8]}", f"{sample.id}-{mark[:8]}"
            keys[sample.key] = [mark]
            tasks[sample.subtask or sample.task] += 1
            photos.update(image.name for image in sample.images)
            yield sample
        nothing_kept = not tasks

    try:
        excluded = excluded_names(told.exclude_images) if told.exclude_images else Excluded()
        pictures = Pictures(told.images, excluded, dropped)
        manifest = index_shards(write_shards(counted(), told.out, prefix, told.maxcount))
    except (OSError, ValueError) as error:
        dropped.close(keep=nothing_kept)
        for line in dropped.lines():
            error.add_note(line)
        if nothing_kept and listing.is_file():
            error.add_note(f"{listing}  all that was left out or changed")
        raise
    dropped.close()
    return Converted(manifest, tasks, len(photos), dropped, listing, excluded)


def list_images(name: str, told: Conversion, options: Mapping[str, Any]) -> int:
    """Write the names of all pictures that a data set's questions name, one a line, sorted; returns their number.

    PATH may also be a folder of such data sets' files (RefCOCO's split files), which are read one after the other.
    """
    names: set[str] = set()
    path, pictures = Path(told.path or "."), Pictures()
    many = files_of(path, "*.pth") if path.is_dir() and name == "refcoco" else []
    for one in many or [path]:
        for sample in _samples(name, str(one), told, options, pictures):
            names.update(image.name for image in sample.images)
    if not names or told.list_images is None:
        raise ValueError(f"{path}: seen no picture, expected questions that name some")
    told.list_images.parent.mkdir(parents=True, exist_ok=True)
    told.list_images.write_text("".join(f"{one}\n" for one in sorted(names)))
    return len(names)


def _samples(
    name: str, path: str | None, told: Conversion, options: Mapping[str, Any], pictures: Pictures
) -> Iterator[Sample]:
    read = reader(name)
    if name != "coco-regions":
        if path is None and options.get("annotations") is None and options.get("captions") is None:
            raise ValueError(f"{name}: seen no PATH, expected the data set's folder or file")
        return read(path, pictures, **options)
    subset = import_module(read.__module__).subset
    ids = subset(options["annotations"], told.subset, options["seed"], pictures)
    if told.list_images is None:
        told.out.mkdir(parents=True, exist_ok=True)
        known = json.dumps({"seed": options["seed"], "image_ids": ids})
        (told.out / f"{told.prefix or 'coco_regions'}.ids.json").write_text(known + "\n")
    return read(pictures, image_ids=ids, **options)


def subset_line(name: str, options: Mapping[str, Any], number: int, asked: int) -> str:
    """What the subset of few objects is, and its size beside the paper's."""
    named = [(key, options[key]) for key in ("split", "count_by", "crowd", "difficult") if key in options]
    chosen = ", ".join(f"{key.replace('_', '-')} {'all' if value is None else value}" for key, value in named)
    found = f"{number} photos with at most {options['max_objects']} objects ({chosen}), {asked} with a question"
    paper = PAPER_SUBSETS.get(name)
    if paper is None:
        return found
    return f"{found}; the paper's subset: {paper} photos ({number - paper:+d}, {100 * number / paper:.1f}% of it)"
