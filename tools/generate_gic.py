"""Grounded captions by a model that sees the picture, checked against the annotated boxes.

python tools/generate_gic.py 'shards/*.tar' --out DIR [--captions openai:MODEL@URL]
"""

import argparse
import sys

from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.generate import add_arguments, run
from ts_lightning.pipelines.gic import Captions
from ts_lightning.pipelines.llm_client import Chat


def make(args: argparse.Namespace, chats: dict[str, Chat], dropped: Dropped) -> Captions:
    return Captions(chats["captions"], args.seed, args.least, dropped, args.templates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ("captions",))
    parser.add_argument("--templates", help="folder with an edited copy of ts_lightning/pipelines/templates")
    parser.add_argument("--least", type=float, default=1.0, help="share of boxes that must agree")
    return run(parser.parse_args(), "gic", ("captions",), make)


if __name__ == "__main__":
    sys.exit(main())
