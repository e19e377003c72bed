#!/usr/bin/env python
r"""Score predictions of region suites: accuracy and COCO AP of region classification, box noise as table and plot.

    python tools/score_regions.py --predictions outputs/regions/predictions.jsonl \
        --annotations annotations/instances_val2017.json --out outputs/regions

An answer goes to the class whose name is most similar by a sentence transformer (the extra `gic`).
"""

import argparse
import json
import sys
from pathlib import Path

from ts_lightning.metrics.class_mapping import sentence_embedder
from ts_lightning.metrics.region_class import SUBTASK, score_region_class
from ts_lightning.metrics.robustness import by_noise, noise_table, plot_noise
from ts_lightning.metrics.scoring import read_predictions, score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True, help="predictions.jsonl of `ts-lightning predict`")
    parser.add_argument("--annotations", type=Path, help="instances_*.json; needed for region classification")
    parser.add_argument("--embedder", help="folder of a sentence transformer (the packaged MiniLM when missing)")
    parser.add_argument("--threshold", type=float, default=-1.0, help="cosine below which an answer has no class")
    parser.add_argument("--out", type=Path, required=True, help="folder for regions.json and noise.png")
    args = parser.parse_args()
    try:
        records = read_predictions(args.predictions)
        classes = [record for record in records if record.get("subtask") == SUBTASK]
        if classes and args.annotations is None:
            raise ValueError(f"--annotations: seen none, expected the COCO file of {len(classes)} region questions")
        result = {}
        if classes:
            result = score_region_class(classes, args.annotations, sentence_embedder(args.embedder), args.threshold)
        for suite, values in score([record for record in records if record.get("subtask") != SUBTASK]).items():
            result[suite] = values
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "regions.json").write_text(json.dumps(result, indent=1) + "\n")
    for suite, values in result.items():
        cells = (f"{k} {v:.3f}" for k, v in values.items() if isinstance(v, float) and v == v)
        print(f"{suite:32} " + "  ".join(cells))
    first = {s: v.get("accuracy", v.get("contains")) for s, v in result.items()}
    if rows := by_noise({suite: value for suite, value in first.items() if value is not None}):
        print(noise_table(rows))
        plot_noise(rows, args.out / "noise.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
