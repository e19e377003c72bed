#!/usr/bin/env python
r"""Answer the suites of overlays with a checkpoint, score them, and write one report.

    python tools/run_suites.py --ckpt outputs/quickstart/fit/checkpoints/last.ckpt --out outputs/report \
        --suites configs/eval/toy.yaml [more overlays] [any option of `ts-lightning predict`]

Answers stay in OUT/predictions.jsonl: tools/score.py and tools/compare_runs.py read them again without the model.
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.cli import main as command
from ts_lightning.evaluation.predictions import read_own
from ts_lightning.evaluation.suite_report import markdown, write_suite_report
from ts_lightning.evaluation.suites import score_suites
from ts_lightning.training import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint, package, adapter or standalone folder")
    parser.add_argument("--suites", nargs="+", required=True, help="overlays of configs/eval")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="Evaluation")
    args, options = parser.parse_known_args()
    overlays = [part for path in args.suites for part in ("-c", path)]
    root = [f"--trainer.default_root_dir={args.out}", "--trainer.enable_progress_bar=false"]
    if status := command(["predict", "--ckpt_path", args.ckpt, *overlays, *root, *options]):
        return status
    try:
        records = read_own(args.out / "predictions.jsonl")
        scores = score_suites(records)
        page = write_suite_report(scores, records, args.out, load(args.ckpt).vlm.codec, args.title)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{markdown(scores)}\n\n{page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
