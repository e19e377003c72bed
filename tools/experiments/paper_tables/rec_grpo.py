"""GRPO over one picture from plain SFT: what `fit/rec_grpo_toy.yaml` adds to answers without thoughts."""

from pathlib import Path

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, World, over
from tools.experiments.paper_tables import twist
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import NEW, grounding_samples


def render(folder: Path, share: float) -> None:
    """The toy world, and five times as many questions about new objects of the test split: the effect is small."""
    twist.render(folder, share)
    if not list(folder.glob("test_more-*.tar")):
        total = max(8, int(2000 * share))
        write_shards(grounding_samples("test", total, ("no_color",), domain=NEW), folder, "test_more", 2000)


WORLD = World(render, {**twist.WORLD.suites, "new": ("test_more-*.tar", "rec")})
SFT = twist.TWIST
GRPO = Row("SFT, then GRPO", "fit/rec_grpo_toy.yaml", after=SFT)
AS_LONG = over({"trainer": {"max_steps": 1900}}, twist.rate(1.25e-3))  # a quarter of its rate, a whole schedule
MORE = Row("SFT, then SFT for as long", SFT.config, AS_LONG, after=SFT)
FEW = twist.again(twist.FEWEST, "SFT on 1/32 of the records", "")
ALL = twist.train(include_tags=None)  # known objects are not solved behind so few
FEW_GRPO = Row("the same, then GRPO on all prompts", GRPO.config, ALL, after=FEW)

TABLES = (
    Table(
        "rec-grpo",
        "GRPO over one picture, from plain SFT",
        WORLD,
        twist.SKILL | {"known/miou": "known, mIoU", "new/miou": "new, mIoU"} | twist.STEPPED | twist.KEPT,
        (twist.again(SFT, "SFT", ""), MORE, GRPO, FEW, FEW_GRPO),
        (
            Finding("GRPO helps after SFT: new objects", "SFT", GRPO.name, "new"),
            Finding("GRPO costs known objects", GRPO.name, "SFT", "known"),
            Finding("GRPO helps after SFT on few records: known objects", FEW.name, FEW_GRPO.name, "known"),
            Finding("GRPO helps after SFT on few records: new objects", FEW.name, FEW_GRPO.name, "new"),
            Finding("SFT on all records, from the base, helps more: new objects", FEW_GRPO.name, "SFT", "new"),
            Finding("it helps more than SFT for as long: new objects", MORE.name, GRPO.name, "new"),
        ),
        "No paper's table. No thoughts and no tags in the answers; the rewards are F1 by generalised IoU and strict "
        "notation, the prompts those about new objects: known ones are solved (behind few records, all). "
        "2,000 questions about new objects.",
    ),
)
