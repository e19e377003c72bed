"""SCOUT-like questions with stepwise grounded answers, from shards of annotated or captioned pictures.

python tools/generate_scout.py 'shards/*.tar' --out DIR                       # offline: grammar over the annotations
python tools/generate_scout.py 'shards/*.tar' --out DIR --questions openai:MODEL@URL --answers openai:VLM@URL
python tools/generate_scout.py 'shards/*.tar' --out DIR --questions ... --answerer caption   # the caption-only baseline
Killed or failed runs go on where they were: run the same command again. Then: python tools/report_dataset.py --help
"""

import argparse
import sys

from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.generate import add_arguments, run
from ts_lightning.pipelines.llm_client import Chat
from ts_lightning.pipelines.scout import Scout


def make(args: argparse.Namespace, chats: dict[str, Chat], dropped: Dropped) -> Scout:
    answers = None if args.answerer == "caption" else chats["answers"]
    chosen = (args.negatives, args.most, args.seed, args.second)
    return Scout(chats["questions"], answers, *chosen, dropped, args.templates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ("questions", "answers"))
    parser.add_argument(
        "--answerer", choices=("vlm", "caption"), default="vlm", help="caption: never shows the picture"
    )
    parser.add_argument("--templates", help="folder with an edited copy of ts_lightning/pipelines/templates")
    parser.add_argument("--negatives", type=float, default=0.075, help="share of questions about absent things")
    parser.add_argument("--second", action="store_true", help="ask again where a box fits no annotation")
    args = parser.parse_args()
    return run(args, "scout" if args.answerer == "vlm" else "scout_caption", ("questions", "answers"), make)


if __name__ == "__main__":
    sys.exit(main())
