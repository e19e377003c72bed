#!/usr/bin/env python
"""TWIST's full and low-rank forms and LoRA on the toy world, each at the rate that a development split chose.

    python -m tools.experiments.compare_ranks [--out outputs/compare_ranks] [--forms full rank_8] [--minutes 12]

One line of JSON a run in OUT/rows.jsonl; what is there is not run again. `--table` prints what there is.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tools.experiments.fit_once import fit_once
from ts_lightning.cli.configurations import SHIPPED
from ts_lightning.cli.main_job import validate
from ts_lightning.data import ShardSource
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import grounding_samples, write_toy_shards
from ts_lightning.runs.load import load

TWIST, LORA = "toy_twist", "lora_toy_equal"
VLM = "--model.init_args.vlm.init_args"
# form -> configuration, options, the rates that are tried
FORMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "full": (TWIST, (), (2e-3, 4e-3)),
    "rank_8": (TWIST, (f"{VLM}.expert_rank=8",), (1e-2, 2e-2)),
    "lora": (LORA, (f"{VLM}.rank=7", f"{VLM}.lora_alpha=14"), (1e-2, 5e-3)),  # rank 8's parameters
    "rank_4": (TWIST, (f"{VLM}.expert_rank=4",), (1.5e-2, 3e-2)),
    "rank_16": (TWIST, (f"{VLM}.expert_rank=16",), (6e-3, 1.2e-2)),
    "rank_64": (TWIST, (f"{VLM}.expert_rank=64",), (4e-3, 8e-3)),
}
FIGURES = ("grounding/acc50", "grounding/miou", "steps/acc50", "steps/miou", "captions/miou", "understanding/accuracy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "compare_ranks")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step, each of up to eight questions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    log = args.out / "rows.jsonl"
    if not args.table:
        write_suites(args.shards)
        args.out.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        while time.monotonic() - began < 60 * args.minutes:
            wanted = [one for form in args.forms for one in missing(read(log), form, args.seeds)]
            if not wanted:
                break
            row = run(*min(wanted, key=lambda one: (one[3], one[2])), args)  # every form's search, then seed by seed
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(as_table(read(log)))
    return 0


def write_suites(shards: Path) -> None:
    """The toy world, grounded captions of held-out scenes, and a development split of scenes of its own."""
    write_toy_shards(shards, 16000, 400)
    for prefix, samples in (
        ("dev_grounding", lambda: grounding_samples("test", 200, ("localization", "rec"))),
        ("val_captions", lambda: grounding_samples("val", 60, ("caption",))),
    ):
        if not list(shards.glob(f"{prefix}-*.tar")):
            write_shards(samples(), shards, prefix, 2000)


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def missing(rows: list[dict[str, Any]], form: str, seeds: int) -> Iterator[tuple[str, float, int, str]]:
    """(form, rate, seed, split) still to be run: the search on the development split, then the seeds at its best."""
    made = [row for row in rows if row["form"] == form]
    searched = {row["rate"]: row["grounding/miou"] for row in made if row["split"] == "development"}
    todo = [rate for rate in FORMS[form][2] if rate not in searched]
    yield from ((form, rate, 0, "development") for rate in todo)
    if not todo:
        best = max(searched, key=lambda rate: searched[rate])
        done = {row["seed"] for row in made if row["split"] == "held out"}
        yield from ((form, best, seed, "held out") for seed in range(seeds) if seed not in done)


def run(form: str, rate: float, seed: int, split: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one form once (seed 0 of the search is seed 0 of the result) and score it on one split."""
    config, overrides, _ = FORMS[form]
    shards = {"development": {"grounding": "dev_grounding"}}.get(
        split, {name: f"val_{name}" for name in ("grounding", "steps", "captions", "understanding")}
    )
    suites = {name: ShardSource(f"{args.shards}/{prefix}-*.tar", max_samples=200) for name, prefix in shards.items()}
    options = [
        "--trainer.limit_val_batches=0",
        f"--data.init_args.train.shards={args.shards}/train-*.tar",
        *[
            f"--data.init_args.val.{s}.shards={args.shards}/val_{s}-*.tar"
            for s in ("grounding", "steps", "understanding")
        ],
        f"--data.init_args.global_batch_size={args.batch}",
        f"--model.init_args.optimizer.init_args.lr={rate}",
        f"--seed_everything={seed}",
        *overrides,
    ]
    folder = args.out / f"{form}_{rate:g}_{seed}"
    made = fit_once(SHIPPED / "fit" / f"{config}.yaml", folder, options, args.steps)
    module = load(made["checkpoint"])
    trained = sum(p.numel() for p in module.vlm.parameters() if p.requires_grad)
    figures = {name.removeprefix("val/"): value for name, value in validate(module, suites).items()}
    row = {"form": form, "rate": rate, "seed": seed, "split": split, "steps": args.steps, "batch": args.batch}
    kept = {name: round(figures[name], 4) for name in FIGURES if name in figures}
    return {**row, "trained": trained, "seconds": round(made["seconds"]), **kept}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of each form, and the search below."""
    lines = [f"| form | trained | rate | seeds | {' | '.join(FIGURES)} |", "|---|" + "---|" * (3 + len(FIGURES))]
    for form in FORMS:
        held = [row for row in rows if row["form"] == form and row["split"] == "held out"]
        if held:
            cells = [spread([row[name] for row in held]) for name in FIGURES]
            lines.append(
                f"| {form} | {held[0]['trained']:,} | {held[0]['rate']:g} | {len(held)} | {' | '.join(cells)} |"
            )
    lines += ["", "| form | rate | mIoU on the development split |", "|---|---|---|"]
    tried = [row for row in rows if row["split"] == "development"]
    lines += [f"| {row['form']} | {row['rate']:g} | {row['grounding/miou']:.3f} |" for row in tried]
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
