"""ChatSpot's tables: what is under a click, a box and a polygon, by stage, and under noisy boxes."""

from pathlib import Path

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import SHARDS, Row, World
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.regions import KINDS, region_questions
from ts_lightning.pipelines.toy_world.shards import write_region_shards

NOISE = (0.1, 0.2, 0.3)
REGIONS, BOXES = ("test_region-*.tar", "answers"), ("test_boxes-*.tar", "answers")


def render(folder: Path, share: float) -> None:
    """Conversations about regions, and held-out questions of the "test" split, about all kinds of regions and boxes."""
    held_out = max(9, int(900 * share))
    write_region_shards(folder, max(16, int(16000 * share)), held_out)
    for name, kinds in ("test_region", KINDS), ("test_boxes", ["box"]):
        if not list(folder.glob(f"{name}-*.tar")):
            write_shards(region_questions(held_out, "test", kinds), folder, name, 2000)


WORLD = World(render, {"regions": REGIONS})
NOISY_WORLD = World(render, {"boxes": BOXES} | {f"noise {scale}": (*BOXES, scale) for scale in NOISE})
STAGE_1 = Row("stage 1 alone", "fit/toy_chatspot_stage1.yaml")
STAGE_2 = Row("stage 2 alone", "fit/toy_chatspot_stage2.yaml", paper="")
BOTH = Row("both stages", "fit/toy_chatspot_stage2.yaml", after=STAGE_1, paper="64.5 accuracy on COCO-1000")
NOISY = {"data": {"init_args": {"train": {"shards": f"{SHARDS}/region_train-*.tar", "box_noise": 0.3}}}}
AUGMENTED = Row("both stages, noise 0.3 in training", "fit/toy_chatspot_stage2.yaml", NOISY, STAGE_1)

TABLES = (
    Table(
        "chatspot-1",
        "ChatSpot, Tables 1 and 2: what is under a region, by stage",
        WORLD,
        {"regions/accuracy": "all"} | {f"regions/{kind}_shape/accuracy": f"{kind}, shape" for kind in KINDS},
        (STAGE_1, STAGE_2, BOTH),
        (
            Finding("the second stage teaches regions", STAGE_1.name, BOTH.name, "regions"),
            Finding("the first stage helps the second (the paper has no such row)", STAGE_2.name, BOTH.name, "regions"),
        ),
    ),
    Table(
        "chatspot-5",
        "ChatSpot, Figure 5: boxes that are off",
        NOISY_WORLD,
        {"boxes/accuracy": "exact"} | {f"noise {scale}/accuracy": f"noise {scale}" for scale in NOISE},
        (BOTH, AUGMENTED),
        (
            *(
                Finding(f"boxes that are off by {scale} cost accuracy", *[BOTH.name] * 2, "boxes", False, noise)
                for scale in NOISE
                for noise in [f"noise {scale}"]
            ),
            Finding("noise in training helps under noise 0.3", BOTH.name, AUGMENTED.name, "noise 0.3"),
        ),
        "The paper's figure is a plot without numbers; it sees no significant decrease. All questions are about boxes: "
        "the noise moves nothing else.",
    ),
)
