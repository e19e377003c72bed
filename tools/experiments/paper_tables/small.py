"""TWIST of LoRA's size beside full copies and LoRA: rates by a development split, then the held-out suites."""

from pathlib import Path
from typing import Any

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, World
from tools.experiments.paper_tables import twist
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import grounding_samples

LORA = {"rank": 7, "lora_alpha": 14}  # as many parameters as rank 8 trains
# form -> configuration, options of its vlm, the rates that are tried; the first is taken
FORMS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "rank 8": ("fit/toy_twist.yaml", {"expert_rank": 8}, (1e-2, 2e-2)),
    "full copies": ("fit/toy_twist.yaml", {}, (5e-3, 3e-3)),
    "LoRA, rank 8's parameters": ("fit/lora_toy_equal.yaml", LORA, (1e-2, 5e-3)),
    "rank 4": ("fit/toy_twist.yaml", {"expert_rank": 4}, (1.5e-2, 3e-2)),
    "rank 16": ("fit/toy_twist.yaml", {"expert_rank": 16}, (7e-3, 1.4e-2)),
    "rank 64": ("fit/toy_twist.yaml", {"expert_rank": 64}, (5e-3, 1e-2)),
}
OTHERS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {  # rows of the other tables
    "LoRA, as many parameters": ("fit/lora_toy_equal.yaml", {}, (5e-3, 2.5e-3)),
    "full tuning on grounding": ("fit/toy_full.yaml", {}, (5e-4, 1e-3)),
}


def row(form: str, rate: float, name: str) -> Row:
    """The shipped run of a form at a rate: 200 steps of half as many questions teach nobody where an object is."""
    config, options, _ = (FORMS | OTHERS)[form]
    return twist.run(name, config, twist.vlm(**options), twist.rate(rate))


def render(folder: Path, share: float) -> None:
    """The toy world, and questions about scenes that are neither trained on nor held out."""
    twist.render(folder, share)
    if not list(folder.glob("dev-*.tar")):
        total = max(8, int(200 * share))
        write_shards(grounding_samples("dev", total, ("localization", "rec")), folder, "dev", 2000)


TABLES = (
    Table(
        "rates",
        "TWIST of LoRA's size: rates on a development split",
        World(render, {"development": ("dev-*.tar", "rec")}),
        {"development/miou": "mIoU", "development/acc50": "Acc@0.5"},
        tuple(
            row(form, rate, f"{form}, {rate:g}") for form, (_, _, rates) in (FORMS | OTHERS).items() for rate in rates
        ),
        (),
    ),
    Table(
        "small",
        "TWIST of LoRA's size beside full copies and LoRA",
        twist.WORLD,
        {"known/miou": "known, mIoU"} | twist.SKILL | twist.STEPPED | twist.KEPT,
        (twist.BASE, *(row(form, rates[0], form) for form, (_, _, rates) in FORMS.items())),
        (
            Finding("rank 8 finds known objects as full copies do, or better", "full copies", "rank 8", "known"),
            Finding("rank 8 finds more than rank 4", "rank 4", "rank 8", "known"),
            Finding("rank 8 finds known objects better than LoRA", "LoRA, rank 8's parameters", "rank 8", "known"),
            Finding("rank 8 forgets nothing", "base", "rank 8", "understanding", True),
            Finding("rank 8 keeps what LoRA forgets", "LoRA, rank 8's parameters", "rank 8", "understanding"),
        ),
    ),
)
