"""GRPO over one picture from plain SFT: what `fit/rec_grpo_toy.yaml` adds to answers without thoughts."""

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, over
from tools.experiments.paper_tables import twist

SFT = twist.TWIST
GRPO = Row("SFT, then GRPO", "fit/rec_grpo_toy.yaml", after=SFT)
AS_LONG = over({"trainer": {"max_steps": 400}}, twist.rate(1.25e-3))  # a quarter of its rate, a whole schedule
MORE = Row("SFT, then SFT for as long", SFT.config, AS_LONG, after=SFT)

TABLES = (
    Table(
        "rec-grpo",
        "GRPO over one picture, from plain SFT",
        twist.WORLD,
        twist.SKILL | {"known/miou": "known, mIoU", "new/miou": "new, mIoU"} | twist.STEPPED | twist.KEPT,
        (twist.again(SFT, "SFT", ""), MORE, GRPO),
        (
            Finding("GRPO helps after SFT: known objects", "SFT", GRPO.name, "known"),
            Finding("GRPO helps after SFT: new objects", "SFT", GRPO.name, "new"),
            Finding("it helps more than SFT for as long: new objects", MORE.name, GRPO.name, "new"),
        ),
        "No paper's table. No thoughts and no tags in the answers; the rewards are F1 by generalised IoU and strict "
        "notation.",
    ),
)
