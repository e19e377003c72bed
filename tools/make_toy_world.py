#!/usr/bin/env python
"""Render the toy world's shards; the same bytes for the same numbers.

python tools/make_toy_world.py --out data_shards/toy_world --train 16000 --val 400
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.pipelines.toy_world.multi_image import STYLES
from ts_lightning.pipelines.toy_world.shards import write_multi_image_shards, write_region_shards, write_toy_shards


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the toy world's shards.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--train", type=int, default=16000, help="grounding records for training")
    parser.add_argument("--val", type=int, default=400, help="held-out records of each validation suite")
    parser.add_argument("--regions", type=int, default=0, help="region conversations for training (ChatSpot)")
    parser.add_argument("--region-val", type=int, default=900, help="held-out region questions")
    parser.add_argument("--mirg", type=int, default=0, help="multi-image trajectories for SFT, and as many RL prompts")
    parser.add_argument("--mirg-val", type=int, default=2000, help="held-out multi-image questions")
    parser.add_argument("--mirg-style", default="grounded", choices=STYLES, help="form of the trajectories")
    parser.add_argument("--per-shard", type=int, default=2000)
    args = parser.parse_args()
    try:
        write_toy_shards(args.out, args.train, args.val, args.per_shard)
        if args.regions:
            write_region_shards(args.out, args.regions, args.region_val, args.per_shard)
        if args.mirg:
            write_multi_image_shards(args.out, args.mirg, args.mirg, args.mirg_val, args.mirg_style, args.per_shard)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(list(args.out.glob('*.tar')))} shards in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
