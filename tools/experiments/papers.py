#!/usr/bin/env python
"""The papers' tables in miniature: runs the rows that are missing, prints each table with its findings.

    python -m tools.experiments.papers --table 1            # three seeds; rows that are kept are not run again
    python -m tools.experiments.papers --table all --seeds 0 --minutes 12
    python -m tools.experiments.papers --table all --show   # what is there, and docs/papers.md anew; runs nothing
    python -m tools.experiments.papers --table all --quick  # every row for a few steps: does it run

A call with --row or --seeds prints its table and leaves the page as it is. It can be stopped at any time. Figures are
kept in tools/experiments/results, one line a row and seed.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

from tools.experiments import paper_picture, paper_report
from tools.experiments.paper_rows import RESULTS, Bench, Size, by_name
from tools.experiments.paper_tables import captions, chatspot, grpo, mirg, rec_grpo, second_skill, small, twist

ROOMS = (twist, captions, second_skill, small, chatspot, mirg, grpo, rec_grpo)
TABLES = tuple(table for room in ROOMS for table in room.TABLES)
DOCS, PICTURE = Path("docs/papers.md"), Path("docs/images/skill_retention.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="all", choices=["all", *(table.name for table in TABLES)])
    parser.add_argument("--row", help="this row alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2 without this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="4 steps, a fiftieth of the questions, kept apart")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--out", type=Path, default=Path("outputs/papers"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    began = time.monotonic()
    whole = args.row is None and args.seeds is None and not args.quick  # what docs/papers.md and its picture show
    args.seeds = args.seeds or [0, 1, 2]
    bench = Bench(args.shards, args.out, RESULTS)
    if args.quick:
        args.seeds = args.seeds[:1]
        bench = Bench(args.out / "quick_shards", args.out / "quick", args.out / "quick" / "results", Size(0.02, 4))
    chosen = [table for table in TABLES if args.table in ("all", table.name)]
    try:
        for seed in args.seeds:
            for table in chosen:
                rows = [by_name(table.rows, args.row)] if args.row else table.rows
                for row in rows:
                    late = time.monotonic() - began > 60 * args.minutes
                    if row.reason or args.show or late or bench.kept(table.world, row, seed):
                        continue
                    print(f"table {table.name}, {row.name}, seed {seed}", flush=True)
                    print(bench.measured(table.name, table.world, row, seed)["figures"], flush=True)
        for table in chosen:
            text = paper_report.markdown(table, bench, args.seeds)
            print(f"\n{text}")
            if whole:
                paper_report.write_docs(DOCS, table, text)
        if whole:
            drawn = [table for table in TABLES if table.name in ("1", "3")]
            print(f"{PICTURE}: {paper_picture.draw(drawn, bench, args.seeds, PICTURE)} rows")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
