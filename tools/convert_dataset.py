"""Turn a dataset's own files into shards.

python tools/convert_dataset.py coco --images DIR --annotations FILE [--captions FILE] --out DIR [--max-objects N]
python tools/convert_dataset.py coco-regions --images DIR --annotations FILE [--detections FILE] --out DIR
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from ts_lightning.data.index import index_shards
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.converters import coco, coco_regions


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
    regions = formats.add_parser("coco-regions", help="COCO boxes as region classification questions")
    regions.add_argument("--images", required=True, help="folder of photos")
    regions.add_argument("--annotations", required=True, help="instances_*.json")
    regions.add_argument("--detections", help="a detector's COCO results: its boxes in place of the annotated ones")
    regions.add_argument(
        "--subset", type=int, default=1000, help="images, drawn by --seed; ids go to OUT/PREFIX.ids.json"
    )
    regions.add_argument("--seed", type=int, default=0)
    regions.add_argument("--out", required=True, help="folder for the shards")
    regions.add_argument("--prefix", default="coco_regions")
    regions.add_argument("--maxcount", type=int, default=10_000)
    args = parser.parse_args()
    dropped: Counter[str] = Counter()
    try:
        if args.format == "coco":
            samples = coco.read(args.images, args.annotations, args.captions, args.max_objects, dropped)
        else:
            ids = coco_regions.subset(args.annotations, args.subset, args.seed)
            samples = coco_regions.read(args.images, args.annotations, args.detections, ids, dropped)
            Path(args.out).mkdir(parents=True, exist_ok=True)
            Path(args.out, f"{args.prefix}.ids.json").write_text(
                json.dumps({"seed": args.seed, "image_ids": ids}) + "\n"
            )
        manifest = index_shards(write_shards(samples, args.out, args.prefix, args.maxcount))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for shard in manifest.shards:
        print(f"{shard.path}  {len(shard.keys)} records  {shard.size} bytes")
    kind = "localization" if args.format == "coco" else "region classification"
    tasks = Counter("caption" if key.endswith("-caption") else kind for s in manifest.shards for key in s.keys)
    print(f"{manifest.num_samples} records: " + ", ".join(f"{n} {task}" for task, n in sorted(tasks.items())))
    for reason, number in dropped.items():
        if number:
            print(f"left out: {number} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
