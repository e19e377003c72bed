#!/usr/bin/env python
"""GRPO against SFT continued for the same time, multi-image toy world, three seeds; one table.

    python -m tools.experiments.grpo_toy [--out outputs/grpo_toy] [--minutes 10]

It can be stopped at any time and started again with the same arguments: finished runs are not repeated.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from tools.experiments.grpo_toy_study import learning_table
from ts_lightning.cli.configurations import SHIPPED
from ts_lightning.pipelines.toy_world.shards import write_multi_image_shards, write_toy_shards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "grpo_toy")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--train", type=int, default=16000, help="trajectories, and prompts, to render")
    parser.add_argument("--questions", type=int, default=2000, help="held-out questions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="longest time of one run after SFT")
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--algorithm", default="MIRG", help="a class of ts_lightning.losses")
    parser.add_argument("--iterations", type=int, default=1, help="updates on every completion")
    parser.add_argument("--thought", action="store_true", help="reward the boxes of the thought, too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        write_toy_shards(args.shards, 32000, 400)
        write_multi_image_shards(args.shards, args.train, args.train, args.questions)
        configs, steps = SHIPPED / "fit", args.sft_steps
        options = {"algorithm": args.algorithm, "iterations": args.iterations, "thought": args.thought}
        places, minutes = (configs, args.shards, args.out), args.minutes
        table = learning_table(*places, args.seeds, minutes, steps, args.questions, **options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{table}\n\n{args.out}/grpo.md, grpo.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
