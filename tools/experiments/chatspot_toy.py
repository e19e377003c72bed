#!/usr/bin/env python
"""ChatSpot's two stages on the toy world, and a table: what is under a click, a box, a polygon, a noisy box.

python -m tools.experiments.chatspot_toy [--out outputs/toy_chatspot] [any option of both `fit` commands]
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from tools.experiments.chatspot import chatspot
from ts_lightning.cli.configurations import SHIPPED
from ts_lightning.pipelines.toy_world.shards import write_region_shards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "toy_chatspot")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--train", type=int, default=16000, help="conversations to render for stage 2")
    parser.add_argument("--val", type=int, default=900, help="held-out questions")
    args, overrides = parser.parse_known_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        if write_region_shards(args.shards, args.train, args.val):
            print(f"rendered region questions into {args.shards}", flush=True)
        result = chatspot(SHIPPED / "fit", args.shards, args.out, overrides)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{result}\n{args.out}/report.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
