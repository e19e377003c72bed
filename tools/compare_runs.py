#!/usr/bin/env python
"""Two runs side by side: the difference of each suite with a paired test, and the questions that flipped.

python tools/compare_runs.py --a outputs/base/predictions.jsonl --b outputs/tuned/predictions.jsonl [--out FILE.json]
python tools/compare_runs.py --table outputs/{base,twist,lora}/report.json    # any number: image understanding
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ts_lightning.metrics.predictions import read_own
from ts_lightning.metrics.suites import compare
from ts_lightning.metrics.understanding_table import understanding_table


def read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: seen no JSON ({error}), expected a report.json") from None
    if not isinstance(report, dict) or not all(isinstance(one, dict) and "figures" in one for one in report.values()):
        raise ValueError(f"{path}: seen something else, expected a report.json with the figures of each suite")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--a", type=Path, help="predictions.jsonl of the first run")
    parser.add_argument("--b", type=Path, help="predictions.jsonl of the second run")
    parser.add_argument("--table", type=Path, nargs="+", help="report.json of runs, each in a folder of the run's name")
    parser.add_argument("--out", type=Path, help="everything as JSON, the flipped questions included")
    args = parser.parse_args()
    if args.table is None and (args.a is None or args.b is None):
        parser.error("seen no two runs, expected --a and --b, or --table")
    try:
        if args.table:
            print(understanding_table({path.resolve().parent.name: read_report(path) for path in args.table}))
            return 0
        result = compare(read_own(args.a), read_own(args.b))
        if not result:
            raise ValueError(f"{args.b}: seen no suite of {args.a}, expected one in both")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'suite':24}{'figure':>12}{'a':>9}{'b':>9}{'b - a':>9}   95% interval       p   gained  lost")
    for suite, one in result.items():
        print(
            f"{suite:24}{one['main']:>12}{one['a']:>9.3f}{one['b']:>9.3f}{one['mean']:>+9.3f}   "
            f"{one['low']:+.3f} to {one['high']:+.3f}{one['p']:>8.3f}{len(one['gained']):>8}{len(one['lost']):>6}"
        )
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
