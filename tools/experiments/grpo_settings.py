#!/usr/bin/env python
"""GRPO's settings beside each other on questions for choosing, a piece of the work a call.

    python -m tools.experiments.grpo_settings [--minutes 11] [--seeds 0] [--algorithms MIRG DAPO GSPO CISPO]

Every setting starts from the SFT of its seed and takes as many steps; its cost is this process's CPU time. What has
ended is a line of `tools/experiments/grpo_settings.jsonl`; the exit status is 3 while something is left for another
call. Questions for choosing are trajectories that SFT has not seen; the held-out ones are for the one setting that is
chosen (`python -m tools.experiments.grpo_toy --algorithm ...`).
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.experiments.fit_once import fit_once
from tools.experiments.grpo_toy_study import answers, settings
from ts_lightning.cli.configurations import SHIPPED
from ts_lightning.pipelines.toy_world.shards import write_multi_image_shards, write_toy_shards

ROWS = Path(__file__).with_suffix(".jsonl")
CHOOSING = "mirg_train-000007"  # the last of eight shards; SFT sees the first 600 trajectories of the first
QUESTIONS = 500
STEPS = {"base": 800, "sft": 300, "grpo": 50}


def wanted(algorithms: Sequence[str], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every run's setting: SFT, then each algorithm with and without thought reward, one iteration and two."""
    for seed in seeds:
        yield {"run": "sft", "seed": seed}
        for algorithm, thought, iterations in itertools.product(algorithms, (False, True), (1, 2)):
            yield {"run": "grpo", "seed": seed, "algorithm": algorithm, "thought": thought, "iterations": iterations}


def piece(config: str, shards: Path, root: Path, given: Mapping[str, Any], steps: int, until: float) -> str | None:
    """Go on with a run until a moment; its checkpoint once it has all steps. `cost.json` adds up the CPU seconds."""
    root.mkdir(parents=True, exist_ok=True)
    path, seed = root / "cost.json", given.get("seed", 0)
    cost = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "wall": 0.0, "steps": 0}
    if cost["steps"] < steps:
        made = settings(SHIPPED / "fit" / config, shards, root, seed, {**given, "max_steps": steps})
        (root / "given.yaml").write_text(json.dumps(made))
        left = max(1, int(until - time.monotonic() + cost["wall"]))  # Lightning's timer goes on over pieces
        options = [f"--trainer.max_time=00:{left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}"]
        began, cpu = time.monotonic(), time.process_time()
        run = fit_once(root / "given.yaml", root, options, steps)
        cost = {
            "seconds": cost["seconds"] + time.process_time() - cpu,
            "wall": cost["wall"] + time.monotonic() - began,
            "steps": run["steps"],
        }
        path.write_text(json.dumps(cost) + "\n")
    return str(root / "checkpoints" / "last.ckpt") if cost["steps"] >= steps else None


def go_on(shards: Path, out: Path, runs: Sequence[Mapping[str, Any]], until: float, rows: Path = ROWS) -> bool:
    """Work on the first runs that have no row; whether all of them have one. False where the time is over."""
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    base = piece("toy_mirg_base.yaml", shards, out / "base", {}, STEPS["base"], until)
    for run in runs:
        if any(run.items() <= row.items() for row in done):
            continue
        if base is None or time.monotonic() >= until:
            return False
        name = "-".join(f"{key}={value}" for key, value in run.items() if key != "seed")
        root, start = out / f"seed{run['seed']}" / name, {**run, "init_from": base}
        config = "toy_mirg_sft.yaml"
        if run["run"] == "grpo":
            config = "toy_mirg_grpo.yaml"
            start["init_from"] = str(out / f"seed{run['seed']}" / "run=sft" / "checkpoints" / "last.ckpt")
        checkpoint = piece(config, shards, root, start, STEPS[run["run"]], until)
        if checkpoint is None:
            return False
        right = answers(checkpoint, shards, root, QUESTIONS, CHOOSING)
        seconds = round(json.loads((root / "cost.json").read_text())["seconds"], 1)
        row = {**run, "steps": STEPS[run["run"]], "seconds": seconds, "questions": QUESTIONS}
        with rows.open("a") as file:
            file.write(json.dumps({**row, "acc50": round(sum(right) / len(right), 4)}) + "\n")
    return base is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "grpo_settings")
    parser.add_argument("--shards", type=Path, default=Path("data_shards/toy_world"))
    parser.add_argument("--algorithms", nargs="+", default=["MIRG", "DAPO", "GSPO", "CISPO"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=11.0, help="wall time of this call")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    write_toy_shards(args.shards, 16000, 400)
    write_multi_image_shards(args.shards, 16000, 16000, 2000)
    return 0 if go_on(args.shards, args.out, list(wanted(args.algorithms, args.seeds)), until) else 3


if __name__ == "__main__":
    sys.exit(main())
