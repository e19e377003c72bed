#!/usr/bin/env python
"""Train the task router on the prompts of shards and on paraphrases, and measure it on held-out templates.

    python tools/train_task_router.py --shards 'data_shards/toy/*.tar' --out outputs/task_router

Every skill that the shards name becomes a class. The accuracy is that of the int8 router as saved.
"""

import argparse
import json
import sys
from pathlib import Path

from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.models.task_router import TaskRouter
from ts_lightning.models.task_router_training import Pair, accuracy, confusion, milliseconds, train_router
from ts_lightning.pipelines.router_prompts import FREE, prompts


def shard_prompts(shards: list[str], limit: int) -> list[Pair]:
    """(last user text, task) of the records."""
    manifest = index_shards(shards)
    reader = ShardReader(manifest)
    samples = (reader.read(i) for i in range(min(limit, manifest.num_samples)))
    return [(sample.turns[-2].text, sample.task) for sample in samples]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="*", default=[], help="tars or globs whose prompts are trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--paraphrases", type=int, default=60_000, help="prompts made from training templates")
    parser.add_argument("--max-samples", type=int, default=20_000, help="prompts taken from the shards")
    parser.add_argument("--held-out", type=int, default=10_000, help="prompts made from held-out templates")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        own = shard_prompts(args.shards, args.max_samples) if args.shards else []
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pairs = [*own, *prompts(args.paraphrases, args.seed, held=False)]
    print(f"{len(own)} prompts of shards, {len(pairs) - len(own)} paraphrases", flush=True)
    report = lambda step, loss: print(f"step {step:5d}  loss {loss:.4f}", flush=True)  # noqa: E731
    train_router(pairs, args.steps, seed=args.seed, report=report).save(args.out)
    router = TaskRouter.load(args.out)
    held = list(prompts(args.held_out, args.seed + 1, held=True))
    result = {}
    for name, asked in (("held-out templates", held), ("free wordings", FREE), ("shards", own)):
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
    size = sum(path.stat().st_size for path in args.out.iterdir() if path.name != "measured.json")
    result["cost"] = {"median_ms": median, "p99_ms": slow, "bytes": size}
    print(f"one prompt: {median:.2f} ms (99%: {slow:.2f} ms) on one core; {size / 2**20:.2f} MB on disk")
    (args.out / "measured.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
