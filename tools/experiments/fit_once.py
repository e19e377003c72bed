"""A training run of an experiment: made once, gone on with after a stop, timed."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ts_lightning.cli import main as command


def fit_once(config: Path, root: Path, options: Sequence[str] = (), steps: int | None = None) -> dict[str, Any]:
    """Train `config` in the folder `root`; its checkpoint, its optimizer steps and the seconds that they took.

    A finished run is not repeated. One that was stopped, or is to have more `steps` than before, goes on from its last
    checkpoint. SystemExit where the command refuses.
    """
    checkpoint, stamp = root / "checkpoints" / "last.ckpt", root / "run.json"
    run = json.loads(stamp.read_text()) if stamp.is_file() else {"seconds": 0.0, "steps": 0}
    if run["steps"] < (steps or 1):
        newest = max((path.stat().st_mtime for path in checkpoint.parent.glob("*.ckpt")), default=None)
        resumed = newest is not None
        if newest is not None and "began" in run:  # stopped in the middle: what it has saved was paid for
            run["seconds"] += max(0.0, newest - run["began"])
        root.mkdir(parents=True, exist_ok=True)
        began = time.time()
        stamp.write_text(json.dumps({**run, "began": began}) + "\n")
        where = [] if resumed else ["--resume=false"]
        limits = [] if steps is None else [f"--trainer.max_steps={steps}"]
        root_option = f"--trainer.default_root_dir={root}"
        if command(["fit", *where, "-c", str(config), *limits, root_option, *options]) != 0:
            raise SystemExit(2)  # the command has said why
        made = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
        run = {"seconds": run["seconds"] + time.time() - began, "steps": made, "resumed": resumed}
        stamp.write_text(json.dumps(run) + "\n")
    return {**run, "checkpoint": str(checkpoint)}
