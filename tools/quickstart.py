#!/usr/bin/env python
"""The main job on the toy world: render, score the base, tune, score again, certify, report.

python tools/quickstart.py [--out outputs/quickstart] [--trainer.max_steps 100 and any other option of `fit`]
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from ts_lightning.cli.quickstart import quickstart
from ts_lightning.pipelines.toy_world.shards import write_toy_shards

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Teach the tiny base to ground; see that it forgets nothing.")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "quickstart")
    parser.add_argument("--shards", type=Path, default=ROOT / "data_shards" / "toy_world")
    parser.add_argument("--train", type=int, default=16000, help="records to render for training")
    parser.add_argument("--val", type=int, default=400, help="held-out records of each suite")
    args, overrides = parser.parse_known_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        if write_toy_shards(args.shards, args.train, args.val):
            print(f"rendered the toy world into {args.shards}", flush=True)
        table = quickstart(ROOT / "configs" / "fit" / "toy_twist.yaml", args.shards, args.out, overrides)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table}\n\n{args.out}/report.md, report.json, curves.png, pictures/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
