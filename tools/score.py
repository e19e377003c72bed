#!/usr/bin/env python
r"""Score stored predictions without a model: ours, or another tool's answers to the questions of shards.

    python tools/score.py --predictions outputs/predictions.jsonl --out outputs/scores
    python tools/score.py --predictions samples.jsonl --format lmms-eval --shards 'data_shards/refcoco/testA-*.tar' \
        --suite refcoco_testA --codec shikra --out outputs/scores

A suite's protocol follows from its name or its truth; --protocol says another one. --judge NAME has MM-Vet and
LLaVA-Bench judged as tools/judge.py does. --submission FILE writes MMBench's answers for its server,
tab-separated: save it as xlsx where the server asks for that.
"""

import argparse
import sys
from pathlib import Path

from tools.judge import SUITES as JUDGED
from tools.judge import judged
from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.metrics.predictions import FORMATS, completeness, join, read_answers, read_own
from ts_lightning.metrics.protocols import PROTOCOLS
from ts_lightning.metrics.submission import write_submission
from ts_lightning.metrics.suites import by_suite, judged_entry, score_suites
from ts_lightning.pipelines.llm_client import RequestFailed
from ts_lightning.reports.suite_report import markdown, write_suite_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, default="ours")
    parser.add_argument("--shards", nargs="+", help="the questions with their truth; needed unless the file has it")
    parser.add_argument("--suite", default="predictions", help="name of the suite, with --shards")
    parser.add_argument("--codec", default="scout", help="the notation of the answers' boxes, with --shards")
    parser.add_argument("--grid", help="another grid than the notation's own: 100, 1000, decimals:n, pixels")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS))
    parser.add_argument("--allow-missing", action="store_true", help="with --shards: missing answers count as wrong")
    parser.add_argument("--judge", help="the model that judges MM-Vet and LLaVA-Bench")
    parser.add_argument("--base-url", help="the judge's OpenAI-compatible server; the key is in OPENAI_API_KEY")
    parser.add_argument("--submission", type=Path, help="tab-separated file for MMBench's server")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md, report.html")
    args = parser.parse_args()
    try:
        codec = get_codec(args.codec, CoordinateSpace(args.grid) if args.grid else None)
        if args.shards:
            answers = read_answers(args.predictions, args.format)
            records = join(answers, args.shards, codec, args.suite, args.allow_missing)
            missing = f"{len(records) - len(answers)} of {len(records)} questions of --shards have no answer: wrong"
            told = {args.suite: missing}
        elif args.allow_missing:
            raise ValueError("--allow-missing: seen without --shards, expected them: they say what is missing")
        else:
            records = read_own(args.predictions)
            told = completeness(records)
        if not records:
            raise ValueError(f"{args.predictions}: seen no prediction, expected some")
        chosen = dict.fromkeys(by_suite(records), args.protocol) if args.protocol else None
        scores = score_suites(records, chosen, told)
        for suite in [suite for suite in scores if args.judge and suite in JUDGED]:
            result = judged(by_suite(records)[suite], suite, args.judge, args.base_url, args.out)
            scores[suite] = judged_entry(scores[suite], result)
        if args.submission:
            print(f"{args.submission}: {write_submission(records, args.submission)} answers for MMBench's server")
        write_suite_report(scores, records, args.out, codec)
    except (OSError, ValueError, ModuleNotFoundError, RequestFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
