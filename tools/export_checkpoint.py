#!/usr/bin/env python
"""Write what was trained in another shape: from a checkpoint or a folder of ours, to any of the others.

    python tools/export_checkpoint.py --ckpt FILE_OR_FOLDER --to package --out outputs/grounding_package
    python tools/export_checkpoint.py --ckpt FOLDER --to checkpoint --out outputs/again.ckpt

package: the experts, routers, alpha and token rows of TWIST. adapter: LoRA in peft's layout. checkpoint: for
--ckpt_path and init_from. standalone: the base as well (LoRA merged into it), in the layout of its own family.
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.models import TaskRouter, TwinExpertVLM
from ts_lightning.models.vlm import VLM
from ts_lightning.reports.card_scores import read_scores, run_scores
from ts_lightning.runs.export import TARGETS, export
from ts_lightning.runs.load import load


def give_router(vlm: VLM, kind: str, folder: Path) -> None:
    """Let the package of `vlm` bring a task router; ValueError where there is no package, or no task for its skill."""
    if not isinstance(vlm, TwinExpertVLM) or kind not in ("package", "standalone"):
        seen = f"{kind} of a {type(vlm).__name__}"
        raise ValueError(f"--router: seen --to {seen}, expected package or standalone of a TwinExpertVLM")
    router = TaskRouter.load(folder)
    if vlm.package not in router.tasks:
        raise ValueError(f"--router {folder}: seen {', '.join(router.tasks)}, expected {vlm.package} among its tasks")
    vlm.task_router = router


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint, package, adapter or standalone folder")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    text = "JSON of figures for the card, flat or nested as report.json (default: the run's last validation)"
    parser.add_argument("--scores", type=Path, help=text)
    parser.add_argument(
        "--router", type=Path, help="folder of -m tools.experiments.train_task_router, stored in the package"
    )
    args = parser.parse_args()
    try:
        scores = read_scores(args.scores) if args.scores else run_scores(args.ckpt)
        module = load(args.ckpt)
        if args.router:
            give_router(module.vlm, args.to, args.router)
        export(module, args.to, args.out, scores)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.to}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
