#!/usr/bin/env python
"""Write what was trained in another shape: from a checkpoint or a folder of ours, to any of the others.

    python tools/export_checkpoint.py --ckpt FILE_OR_FOLDER --to package --out outputs/grounding_package
    python tools/export_checkpoint.py --ckpt FOLDER --to checkpoint --out outputs/again.ckpt

package: the experts, routers, alpha and token rows of TWIST. adapter: LoRA in peft's layout. checkpoint: for
--ckpt_path and init_from. standalone: the base as well (LoRA merged into it), in the layout of its own family.
"""

import argparse
import json
import sys
from pathlib import Path

from ts_lightning.training import load
from ts_lightning.training.export import TARGETS, export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint, package, adapter or standalone folder")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scores", type=Path, help="JSON of figures for the card, as {name: number}")
    args = parser.parse_args()
    try:
        scores = json.loads(args.scores.read_text()) if args.scores else {}
        export(load(args.ckpt), args.to, args.out, {key: float(value) for key, value in scores.items()})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.to}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
