"""Turn a dataset's own files into shards.

python tools/convert_dataset.py coco --images DIR --annotations FILE [--captions FILE] --out DIR [--max-objects N]
"""

import argparse
import sys
from collections import Counter

from ts_lightning.data.index import index_shards
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.converters import coco


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn a dataset's own files into shards.")
    formats = parser.add_subparsers(dest="format", required=True)
    sub = formats.add_parser("coco", help="COCO instances (and captions)")
    sub.add_argument("--images", required=True, help="folder of photos")
    sub.add_argument("--annotations", required=True, help="instances_*.json")
    sub.add_argument("--captions", help="captions_*.json; adds understanding records")
    sub.add_argument("--max-objects", type=int, help="only photos with at most so many objects (the papers: 3)")
    sub.add_argument("--out", required=True, help="folder for the shards")
    sub.add_argument("--prefix", default="coco", help="shards are named PREFIX-000000.tar")
    sub.add_argument("--maxcount", type=int, default=10_000, help="records of one shard at most")
    args = parser.parse_args()
    dropped: Counter[str] = Counter()
    try:
        samples = coco.read(args.images, args.annotations, args.captions, args.max_objects, dropped)
        manifest = index_shards(write_shards(samples, args.out, args.prefix, args.maxcount))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for shard in manifest.shards:
        print(f"{shard.path}  {len(shard.keys)} records  {shard.size} bytes")
    tasks = Counter(
        "caption" if key.endswith("-caption") else "localization" for s in manifest.shards for key in s.keys
    )
    print(f"{manifest.num_samples} records: " + ", ".join(f"{n} {task}" for task, n in sorted(tasks.items())))
    for reason, number in dropped.items():
        if number:
            print(f"left out: {number} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
