"""TWIST of LoRA's size beside full copies and LoRA: rates by a development split, then the held-out suites."""

from pathlib import Path
from typing import Any

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, World
from tools.experiments.paper_tables import twist
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.shards import grounding_samples

TWIST, EQUAL, FULL = "fit/toy_twist.yaml", "fit/lora_toy_equal.yaml", "fit/toy_full.yaml"
LORA = {"rank": 7, "lora_alpha": 14}  # as many parameters as rank 8 trains


def small(rank: int, lr: float, times: float) -> Row:
    """Small experts at a rate, alpha at so many times that rate."""
    alpha = {"model": {"init_args": {"alpha_lr_factor": times}}}
    name = f"rank {rank}, {lr:g}, alpha at {times:g} times"
    return twist.run(name, TWIST, twist.vlm(expert_rank=rank), twist.rate(lr), alpha)


def other(form: str, config: str, lr: float, **options: Any) -> Row:
    """Another form at a rate."""
    return twist.run(f"{form}, {lr:g}", config, twist.vlm(**options), twist.rate(lr))


# what is tried of each form; the first is taken
TRIED: dict[str, tuple[Row, ...]] = {
    "full copies": tuple(other("full copies", TWIST, lr) for lr in (5e-3, 3e-3)),
    "rank 64": tuple(small(64, *one) for one in ((5e-3, 1.0), (5e-3, 10.0), (1e-2, 10.0))),
    "rank 16": tuple(small(16, *one) for one in ((7e-3, 1.0), (7e-3, 10.0), (1.4e-2, 10.0))),
    "rank 8": tuple(small(8, *one) for one in ((1e-2, 1.0), (1e-2, 0.25), (2e-2, 0.25), (1e-2, 10.0), (2e-2, 10.0))),
    "rank 4": tuple(small(4, *one) for one in ((1.5e-2, 1.0), (1.5e-2, 10.0), (3e-2, 10.0))),
    "LoRA, rank 8's parameters": tuple(other("LoRA, rank 8's parameters", EQUAL, lr, **LORA) for lr in (1e-2, 5e-3)),
}
FAST = "rank 8, alpha at 10 times"
OTHERS = (  # rows of the other tables
    *(other("LoRA, as many parameters", EQUAL, lr) for lr in (5e-3, 2.5e-3)),
    *(other("full tuning on grounding", FULL, lr) for lr in (5e-4, 1e-3)),
)


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
        (*(row for rows in TRIED.values() for row in rows), *OTHERS),
        (),
    ),
    Table(
        "small",
        "TWIST of LoRA's size beside full copies and LoRA",
        twist.WORLD,
        {"known/miou": "known, mIoU"} | twist.SKILL | twist.STEPPED | twist.KEPT,
        (
            twist.BASE,
            *(twist.again(rows[0], form, "") for form, rows in TRIED.items()),
            twist.again(small(8, 1e-2, 10.0), FAST, ""),
        ),
        (
            Finding("full copies find more known objects than rank 8", "rank 8", "full copies", "known"),
            Finding("full copies find more new objects than rank 8", "rank 8", "full copies", "new"),
            Finding("full copies find more known objects than rank 4", "rank 4", "full copies", "known"),
            Finding("rank 8 finds more than rank 4", "rank 4", "rank 8", "known"),
            Finding("rank 8 finds known objects better than LoRA", "LoRA, rank 8's parameters", "rank 8", "known"),
            Finding("rank 8 finds new objects better than LoRA", "LoRA, rank 8's parameters", "rank 8", "new"),
            Finding("alpha at the experts' own rate helps rank 8: new objects", FAST, "rank 8", "new"),
            Finding("rank 8 is right where the base is", "base", "rank 8", "understanding", True),
            Finding("rank 8 keeps what LoRA forgets", "LoRA, rank 8's parameters", "rank 8", "understanding"),
        ),
    ),
)
