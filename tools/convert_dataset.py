"""Turn a dataset's own files into shards.

python tools/convert_dataset.py NAME PATH --out DIR [--images DIR] [--exclude-images FILE] [--strict] [its options]
python tools/convert_dataset.py NAME --help     # what PATH is, and the options of that dataset
python tools/convert_dataset.py coco-regions --images DIR --annotations FILE [--detections FILE] --out DIR
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ts_lightning.data.index import index_shards
from ts_lightning.data.sample import Sample
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines import converters
from ts_lightning.pipelines.convert_command import arguments, subset_line
from ts_lightning.pipelines.converters.source import Dropped, Pictures, excluded_names


def samples(name: str, read: Any, args: Namespace, pictures: Pictures) -> Iterator[Sample]:
    own = {"path", "out", "prefix", "maxcount", "images", "exclude_images", "strict", "subset"}
    options = {key: value for key, value in vars(args).items() if key not in own}
    if name != "coco-regions":
        if args.path is None and options.get("annotations") is None:
            raise ValueError(f"{name}: seen no PATH, expected the dataset's folder or file")
        return read(args.path, pictures, **options)
    ids = import_module(read.__module__).subset(args.annotations, args.subset, args.seed)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    known = json.dumps({"seed": args.seed, "image_ids": ids})
    Path(args.out, f"{args.prefix}.ids.json").write_text(known + "\n")
    return read(args.images, image_ids=ids, dropped=pictures.dropped, **options)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in converters.NAMES:
        seen = sys.argv[1] if len(sys.argv) > 1 else ""
        print(f"error: dataset: seen {seen!r}, expected one of {', '.join(converters.NAMES)}", file=sys.stderr)
        return 0 if seen in ("-h", "--help") else 2
    name = sys.argv[1]
    read = import_module(f"{converters.__name__}.{name.replace('-', '_')}").read
    args = arguments(name, read, sys.argv[2:])
    listing = Path(args.out, f"{args.prefix}.left_out.txt")
    dropped = Dropped(args.strict, listing)
    tasks: Counter[str] = Counter()
    photos: set[str] = set()
    keys: set[str] = set()

    def counted() -> Iterator[Sample]:
        for sample in samples(name, read, args, pictures):
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
        excluded = excluded_names(args.exclude_images) if args.exclude_images else frozenset()
        pictures = Pictures(Path(args.images) if args.images else None, excluded, dropped)
        manifest = index_shards(write_shards(counted(), args.out, args.prefix, args.maxcount))
    except (OSError, ValueError) as error:
        dropped.close(keep=False)
        print("\n".join(dropped.lines()), end="\n" * bool(dropped))
        print(f"error: {error}", file=sys.stderr)
        return 2
    dropped.close()
    for shard in manifest.shards:
        print(f"{shard.path}  {len(shard.keys)} records  {shard.size} bytes")
    print(f"{manifest.num_samples} records: " + ", ".join(f"{n} {task}" for task, n in sorted(tasks.items())))
    if getattr(args, "max_objects", None) is not None:
        print(subset_line(name, args, dropped.in_subset, len(photos)))
    print("\n".join(dropped.lines()))
    if listing.is_file():
        print(f"{listing}  all that was left out or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
