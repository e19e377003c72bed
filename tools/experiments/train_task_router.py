#!/usr/bin/env python
"""Train the task router on the prompts of shards and on paraphrases, and measure it on held-out templates.

    python -m tools.experiments.train_task_router --shards 'data_shards/toy/*.tar' --out outputs/task_router

Every skill that the shards name becomes a class. The accuracy is that of the int8 router as saved. --held-out-shards
are measured as well: the prompts whose text was not trained on. So are wordings that people wrote, and the questions of
the real files in --real where that folder is. With --router a saved one is measured and none is trained; --shards,
--paraphrases and --expressions then say what it was trained on.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from tools.experiments import router_wordings
from tools.experiments.task_router.prompts import FREE, prompts
from tools.experiments.task_router.training import Pair, accuracy, confusion, milliseconds, train_router
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.models.task_router import FILES, TaskRouter, clean


def shard_prompts(shards: list[str], limit: int | None = None) -> list[Pair]:
    """(last user text, task) of the records."""
    if not shards:
        return []
    return [(sample.turns[-2].text, sample.task) for sample in islice(ShardReader(index_shards(shards)), limit or None)]


def new_prompts(asked: list[Pair], trained: list[Pair]) -> list[Pair]:
    """Those whose text, as the router reads it, was not trained on."""
    seen = {_read(prompt) for prompt, _ in trained}
    return [(prompt, task) for prompt, task in asked if _read(prompt) not in seen]


def _read(prompt: str) -> str:
    return " ".join(clean(prompt).lower().split())


def train(pairs: list[Pair], steps: int, seed: int, out: Path, start: Path | None) -> None:
    """Train a router and save it, every 500 steps as well."""
    report = lambda step, loss: print(f"step {step:5d}  loss {loss:.4f}", flush=True)  # noqa: E731
    begun = TaskRouter.load(start) if start else None
    train_router(pairs, steps, 64, 1e-3, seed, report, lambda router: router.save(out), begun).save(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", default=[], help="tars or globs whose prompts are trained on")
    parser.add_argument("--held-out-shards", nargs="*", default=[], help="tars or globs that are measured only")
    parser.add_argument("--router", type=Path, help="folder of a router to measure; nothing is trained")
    parser.add_argument("--out", type=Path, required=True, help="folder of the router and of measured.json")
    parser.add_argument("--start", type=Path, help="folder of a router whose training goes on")
    parser.add_argument("--paraphrases", type=int, default=60_000, help="prompts made from training templates")
    parser.add_argument("--expressions", type=Path, help="a RefCOCO split file (.pth) whose even rows are trained on")
    parser.add_argument(
        "--wordings", type=Path, default=router_wordings.WRITTEN, help="task TAB prompt lines to measure"
    )
    parser.add_argument("--real", type=Path, default=Path("../shared/real"), help="folder of real files to measure")
    parser.add_argument("--max-samples", type=int, default=20_000, help="prompts taken from the shards")
    parser.add_argument("--held-out", type=int, default=10_000, help="prompts made from held-out templates")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        own, others = shard_prompts(args.shards, args.max_samples), shard_prompts(args.held_out_shards)
        spoken = router_wordings.expressions(args.expressions, even=True) if args.expressions else []
        pairs = [*own, *prompts(args.paraphrases, args.seed, False, spoken)]
        print(f"{len(own)} prompts of shards, {len(pairs) - len(own)} paraphrases", flush=True)
        if args.router is None:
            train(pairs, args.steps, args.seed, args.out, args.start)
        router = TaskRouter.load(args.router or args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    held, unseen = list(prompts(args.held_out, args.seed + 1, held=True)), new_prompts(others, pairs)
    if others:
        print(f"held-out shards: {len(unseen)} of {len(others)} prompts have a text that was not trained on")
    groups = {"held-out templates": held, "free wordings": FREE, "shards": own, "held-out shards": unseen}
    groups |= {"wordings": router_wordings.written(args.wordings)}
    if args.real.is_dir():
        sets = router_wordings.real(args.real)
        unmade = router_wordings.unmade(sets)
        groups |= {"300 unmade": unmade, "blind": router_wordings.blind(sets), **sets}
        print(f"300 unmade: {300 - len(new_prompts(unmade, pairs))} have a text that was trained on")
    result = {}
    for name, asked in groups.items():
        if asked:
            counts, wrong = confusion(router, asked)
            table = {f"{true} -> {chosen}": n for (true, chosen), n in sorted(counts.items())}
            result[name] = {
                "prompts": len(asked),
                "accuracy": accuracy(counts),
                "confusion": table,
                "wrong": wrong[:50],
            }
            print(f"{name:20s} {len(asked):6d} prompts  {100 * accuracy(counts):.2f}%  {table}")
            for prompt, task in wrong[:10]:
                print(f"    {task}: {prompt}")
    median, slow = milliseconds(router, [prompt for prompt, _ in held[:500]])
    size = sum((args.router or args.out).joinpath(name).stat().st_size for name in FILES)
    result["cost"] = {"median_ms": median, "p99_ms": slow, "bytes": size}
    print(f"one prompt: {median:.2f} ms (99%: {slow:.2f} ms) on one core; {size / 2**20:.2f} MB on disk")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "measured.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
