#!/usr/bin/env python
"""Parameters and memory of the papers' models with twin experts, counted on the meta device.

python -m tools.experiments.print_geometry [--gpus 4]
"""

import argparse
import sys

from tools.bench.geometry import PAPER, memory, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=4)
    args = parser.parse_args()
    counted = list(rows())
    heads = ("model", "base, B", "twin layers", "grounding experts", "trainable, B", "the paper's, B")
    print(f"| {' | '.join(heads)} | active top-1, B | active top-2, B |")
    print("|---" * (len(heads) + 2) + "|")
    for row in counted:
        two = f"{row.active[2] / 1e9:.2f}" if 2 in row.active else "-"
        paper = PAPER.get((row.model, row.num_experts), "-")
        cells = (f"{row.base / 1e9:.2f}", row.twin_layers, row.num_experts, f"{row.trainable / 1e9:.2f}", paper)
        print(f"| {row.model} | {' | '.join(map(str, cells))} | {row.active[1] / 1e9:.2f} | {two} |")
    print(f"\nGiB on each of {args.gpus} GPUs for weights, gradients and AdamW states, two grounding experts:\n")
    plans = {row.model: memory(row, args.gpus) for row in counted if row.num_experts == 2}
    names = list(next(iter(plans.values())))
    print(f"| model | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for model, plan in plans.items():
        print(f"| {model} | {' | '.join(f'{plan[name]:.1f}' for name in names)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
