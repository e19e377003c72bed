"""ChatSpot's two stages on the toy world, and the accuracy under a click, a box and a polygon."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.experiments.fit_once import fit_once
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.runs.load import load
from ts_lightning.runs.run import quiet_trainer

KINDS = ("click", "box", "polygon")
ATTRIBUTES = ("color", "shape", "size")
NOISE = (0.0, 0.1, 0.2, 0.3)


def run_stages(configs: Path, shards: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train both stages by their toy configurations; returns the second checkpoint. SystemExit when one fails."""
    started: list[str] = []
    for stage, data in (("stage1", "image_train"), ("stage2", "region_train")):
        shutil.rmtree(out / stage, ignore_errors=True)
        options = [f"--data.init_args.train.shards={shards}/{data}-*.tar"]
        if stage == "stage2":
            options += [f"--data.init_args.val.region.shards={shards}/val_region-*.tar", *started]
        run = fit_once(configs / f"toy_chatspot_{stage}.yaml", out / stage, [*options, *overrides], anew=True)
        started = [f"--model.init_args.vlm.init_args.init_from={run['checkpoint']}"]
    return out / "stage2" / "checkpoints" / "last.ckpt"


def region_scores(checkpoint: Path, shards: str) -> dict[str, Any]:
    """{"noise": {"0.0": {"<kind>_<attribute>": accuracy}, ...}} of the held-out region questions."""
    module = load(checkpoint)
    suites = {f"noise_{scale}": ShardSource(shards, box_noise=scale) for scale in NOISE}
    scores = quiet_trainer().validate(module, ShardDataModule(val=suites, eval_batch_size=50), verbose=False)
    merged = {key: value for part in scores for key, value in part.items()}
    cells = [f"{kind}_{what}" for kind in KINDS for what in ATTRIBUTES]
    return {str(scale): {cell: merged[f"val/noise_{scale}/{cell}/accuracy"] for cell in cells} for scale in NOISE}


def table(scores: dict[str, dict[str, float]]) -> str:
    """Accuracy by region and attribute, and for boxes by noise."""
    lines = [f"{'region':24}" + "".join(f"{what:>8}" for what in ATTRIBUTES)]
    for kind in KINDS:
        lines.append(f"{kind:24}" + "".join(f"{scores['0.0'][f'{kind}_{what}']:8.3f}" for what in ATTRIBUTES))
    for scale in NOISE[1:]:
        cells = "".join(f"{scores[str(scale)][f'box_{what}']:8.3f}" for what in ATTRIBUTES)
        lines.append(f"{f'box, noise {scale}':24}" + cells)
    return "\n".join(lines)


def chatspot(configs: Path, shards: Path, out: Path, overrides: Sequence[str] = ()) -> str:
    """Both stages, the scores, `out/report.json`; returns the table to print."""
    began = time.monotonic()
    checkpoint = run_stages(configs, shards, out, overrides)
    trained = time.monotonic() - began
    scores = region_scores(checkpoint, f"{shards}/val_region-*.tar")
    report = {"accuracy": scores, "seconds": trained, "checkpoint": str(checkpoint)}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return f"{table(scores)}\nboth stages took {trained / 60:.1f} min"
