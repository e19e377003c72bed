"""Turn shards into the files of other tools, to train them on the same data.

python tools/export_dataset.py coco 'DIR/*.tar' --out DIR           # annotations/ and photos
python tools/export_dataset.py llava 'DIR/*.tar' --out DIR --codec scout
python tools/export_dataset.py ms-swift 'DIR/*.tar' --out DIR
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from ts_lightning.data.index import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample
from ts_lightning.grounding import get_codec
from ts_lightning.pipelines.export import to_coco, to_llava, to_ms_swift


def samples(shards: list[str]) -> Iterator[Sample]:
    manifest = index_shards(shards if len(shards) > 1 else shards[0])
    reader = ShardReader(manifest)
    return (reader.read(i) for i in range(manifest.num_samples))


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn shards into the files of other tools.")
    parser.add_argument("format", choices=("coco", "llava", "ms-swift"))
    parser.add_argument("shards", nargs="+", help="tars, or a pattern")
    parser.add_argument("--out", required=True, help="folder for the files and the pictures")
    parser.add_argument("--codec", default="scout", help="llava: the notation of boxes in the texts")
    parser.add_argument("--split", default="export", help="coco: the name in instances_NAME.json")
    args = parser.parse_args()
    out = Path(args.out)
    try:
        if args.format == "coco":
            print(f"{to_coco(samples(args.shards), out, args.split)} photos in {out}")
        elif args.format == "llava":
            print(f"{to_llava(samples(args.shards), out, get_codec(args.codec))} rows in {out / 'llava.json'}")
        else:
            print(f"{to_ms_swift(samples(args.shards), out)} rows in {out / 'ms_swift.jsonl'}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
