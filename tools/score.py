#!/usr/bin/env python
r"""Score stored predictions without a model: ours, or another tool's answers to the questions of shards.

    python tools/score.py --predictions outputs/predictions.jsonl --out outputs/scores
    python tools/score.py --predictions samples.jsonl --format lmms-eval --shards 'data_shards/refcoco/testA-*.tar' \
        --suite refcoco_testA --codec shikra --out outputs/scores

A suite's protocol follows from its name or its truth; --protocol says another one.
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.evaluation.predictions import FORMATS, join, read_answers, read_own
from ts_lightning.evaluation.protocols import PROTOCOLS
from ts_lightning.evaluation.suite_report import markdown, write_suite_report
from ts_lightning.evaluation.suites import by_suite, score_suites
from ts_lightning.grounding import CoordinateSpace, get_codec


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, default="ours")
    parser.add_argument("--shards", nargs="+", help="the questions with their truth; needed unless the file has it")
    parser.add_argument("--suite", default="predictions", help="name of the suite, with --shards")
    parser.add_argument("--codec", default="scout", help="the notation of the answers' boxes, with --shards")
    parser.add_argument("--grid", help="another grid than the notation's own: 100, 1000, decimals:n, pixels")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS))
    parser.add_argument("--allow-missing", action="store_true", help="missing answers count as wrong")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md, report.html")
    args = parser.parse_args()
    try:
        codec = get_codec(args.codec, CoordinateSpace(args.grid) if args.grid else None)
        if args.shards:
            answers = read_answers(args.predictions, args.format)
            records = join(answers, args.shards, codec, args.suite, args.allow_missing)
        else:
            records = read_own(args.predictions)
        if not records:
            raise ValueError(f"{args.predictions}: seen no prediction, expected some")
        chosen = dict.fromkeys(by_suite(records), args.protocol) if args.protocol else None
        scores = score_suites(records, chosen)
        write_suite_report(scores, records, args.out, codec)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
