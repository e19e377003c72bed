#!/usr/bin/env python
"""TWIST against LoRA with as many trainable parameters, on the same records of the toy world; one table.

    python -m tools.experiments.compare_lora [--steps 800] [--out outputs/compare_lora]

It can be stopped at any time and started again with the same arguments.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from tools.experiments.comparison import compare
from ts_lightning.cli.configurations import SHIPPED
from ts_lightning.pipelines.toy_world.shards import write_toy_shards

CONFIGS = ("toy_twist", "lora_toy_equal")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "compare_lora")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--train", type=int, default=32000, help="questions to render for training")
    parser.add_argument("--val", type=int, default=400, help="held-out records of each suite")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="names of configs/fit/NAME.yaml")
    args, overrides = parser.parse_known_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        write_toy_shards(args.shards, args.train, args.val)
        configs = [SHIPPED / "fit" / f"{name}.yaml" for name in args.configs]
        table = compare(configs, args.shards, args.out, args.steps, overrides)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table}\n\n{args.out}/comparison.md, comparison.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
