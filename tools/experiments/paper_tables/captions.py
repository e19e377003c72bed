"""TWIST & SCOUT's Tables 2 and A.3: captions with boxes, COCO AP by the real protocol."""

import json
from pathlib import Path

from tools.experiments import toy_captions
from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, World
from tools.experiments.paper_tables import twist
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import KNOWN, NEW, grounding_samples

COCO = "test_captions.json"


def render(folder: Path, share: float) -> None:
    """The toy world, and scenes of known and of new objects to be captioned whole, with their COCO file."""
    twist.render(folder, share)
    if not (folder / COCO).is_file():
        total = max(4, int(200 * share))
        known, new = (grounding_samples("test", total, ("caption",), domain=one) for one in (KNOWN, NEW))
        samples = toy_captions.numbered([*known, *new])
        write_shards(samples, folder, "test_captions", 2000)
        (folder / COCO).write_text(json.dumps(toy_captions.coco(samples)) + "\n")


WORLD = World(render, {"captions": ("test_captions-*.tar", "gic")}, coco=COCO)
TRUTH = Row("the generator's own captions", ask={"truth": True})

TABLES = (
    Table(
        "2",
        "TWIST & SCOUT, Tables 2 and A.3: captions with boxes",
        WORLD,
        {
            "captions/AP": "AP",
            "captions/AP50": "AP50",
            "captions/pairs": "boxes named",
            "captions/right": "captions wholly right",
        },
        (
            TRUTH,
            twist.BASE,
            twist.cited(twist.TWIST, "AP 15.0%, AP50 49.3%"),
            twist.SMALL,
            twist.LORA,
            twist.FULL,
        ),
        (
            Finding("TWIST captions with boxes, which the base can't", twist.BASE.name, twist.TWIST.name, "captions"),
            Finding("TWIST better than LoRA", twist.LORA.name, twist.TWIST.name, "captions"),
            Finding("full tuning better than TWIST", twist.TWIST.name, twist.FULL.name, "captions"),
        ),
        "COCO AP of the (name, box) pairs over 400 scenes, half of them of new objects, as `evaluate` has it for "
        "photographs. A name is a size, a colour and one of twelve shapes, so names go to classes by their words and "
        "no sentence transformer is needed; a box's score is 1. A caption is wholly right where it names every "
        "object and nothing else, each by its shape with a box of IoU 0.5 or more; the findings are decided by that.",
    ),
)
