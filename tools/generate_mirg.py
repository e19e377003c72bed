"""MIRG trajectories (--style trajectory, cold start) or answer-only rows (--style answer, GRPO) of multi-image shards.

python tools/generate_mirg.py 'shards/*.tar' --out DIR --reason openai:MODEL@URL --locate openai:VLM@URL [--limit 10000]
python tools/generate_mirg.py 'DIR/mirg_trajectory-*.tar' --out OTHER --style reasoning    # the same without boxes
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.generate import add_arguments, run
from ts_lightning.pipelines.llm_client import Chat
from ts_lightning.pipelines.mirg import STYLES, Trajectories

ROLES = ("reason", "locate", "rewrite")


def make(args: argparse.Namespace, chats: dict[str, Chat], dropped: Dropped) -> Trajectories:
    return Trajectories(*(chats[role] for role in ROLES), args.style, args.seed, dropped)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ROLES)
    parser.add_argument("--style", choices=STYLES, default="trajectory")
    parser.add_argument("--limit", type=int, help="records of one shard at most (the paper: 10k and 7k in all)")
    args = parser.parse_args()

    def items(samples: Iterator[Sample]) -> Iterator[Sample]:
        return islice(samples, args.limit)

    return run(args, f"mirg_{args.style}", ROLES, make, items)


if __name__ == "__main__":
    sys.exit(main())
