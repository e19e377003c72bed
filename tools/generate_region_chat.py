"""Region-level dialogues (RegionChat) from annotated pictures.

python tools/generate_region_chat.py 'shards/*.tar' --out DIR [--dialogues openai:MODEL@URL]
"""

import argparse
import sys

from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.generate import add_arguments, run
from ts_lightning.pipelines.llm_client import Chat
from ts_lightning.pipelines.region_chat import RegionChat


def make(args: argparse.Namespace, chats: dict[str, Chat], dropped: Dropped) -> RegionChat:
    return RegionChat(chats["dialogues"], args.most, args.turns, args.seed, dropped=dropped, templates=args.templates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ("dialogues",))
    parser.add_argument("--templates", help="folder with an edited copy of ts_lightning/pipelines/templates")
    parser.add_argument("--turns", type=int, default=2, help="pairs of turns of a dialogue")
    return run(parser.parse_args(), "region_chat", ("dialogues",), make)


if __name__ == "__main__":
    sys.exit(main())
