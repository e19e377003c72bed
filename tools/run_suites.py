#!/usr/bin/env python
r"""Answer the suites of overlays with a checkpoint, score them, and write one report.

    python tools/run_suites.py --ckpt outputs/quickstart/fit/checkpoints/last.ckpt --out outputs/report \
        --suites configs/eval/toy.yaml [more overlays] [any option of `ts-lightning predict`]

Answers stay in OUT/predictions.jsonl: tools/score.py and tools/compare_runs.py read them again without the model.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ts_lightning.cli import main as command
from ts_lightning.metrics.predictions import completeness, read_own
from ts_lightning.metrics.suites import score_suites
from ts_lightning.reports.suite_report import markdown, write_suite_report
from ts_lightning.runs.load import load


def merged_overlays(paths: Sequence[str]) -> dict[str, Any]:
    """One configuration of several overlays with the suites of all: a later `-c` would replace the earlier's suites.

    Other settings are the last overlay's. ValueError for no overlay, and for two suites of one name that differ.
    """
    init_args: dict[str, Any] = {}
    suites: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path in paths:
        try:
            data = yaml.safe_load(Path(path).read_text())["data"]
            module, own = data["class_path"], dict(data["init_args"]["val"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: seen no data.init_args.val, expected an overlay of configs/eval") from None
        for name, source in own.items():
            if suites.get(name, source) != source:
                raise ValueError(f"{path}: suite {name}: seen {source}, expected {suites[name]} as in {origin[name]}")
            origin.setdefault(name, path)
        init_args |= data["init_args"]
        suites |= own
    return {"data": {"class_path": module, "init_args": init_args | {"val": suites}}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint, package, adapter or standalone folder")
    parser.add_argument("--suites", nargs="+", required=True, help="overlays of configs/eval")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="Evaluation")
    args, options = parser.parse_known_args()
    root = [f"--trainer.default_root_dir={args.out}", "--trainer.enable_progress_bar=false"]
    try:
        overlay = json.dumps(merged_overlays(args.suites))
        if status := command(["predict", "--ckpt_path", args.ckpt, "-c", overlay, *root, *options]):
            return status
        records = read_own(args.out / "predictions.jsonl")
        scores = score_suites(records, completeness=completeness(records))
        page = write_suite_report(scores, records, args.out, load(args.ckpt).vlm.codec, args.title)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{markdown(scores)}\n\n{page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
