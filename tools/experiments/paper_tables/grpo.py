"""GRPO over several pictures: its settings on a development split, and what it adds to SFT that goes on for as long."""

import itertools
from pathlib import Path
from typing import Any

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import Row, World, over
from tools.experiments.paper_tables import mirg, twist
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples

ALGORITHMS = ("MIRG", "DAPO", "GSPO", "CISPO")
STEPS = {1: 50, 2: 72}  # by iterations, of as much time: two thirds of a first update are its rollout
SETTINGS = tuple(itertools.product(ALGORITHMS, (False, True), STEPS))


def render(folder: Path, share: float) -> None:
    """The pictures of MIRG's tables, and questions to choose settings by."""
    mirg.render(folder, share)
    if not list(folder.glob("grpo_dev-*.tar")):
        write_shards(multi_image_samples("dev", max(20, int(2000 * share))), folder, "grpo_dev", 2000)


def setting(algorithm: str, thought: bool, iterations: int, **more: Any) -> Row:
    """GRPO after SFT by this algorithm, with the boxes of the thought rewarded or not, so many updates a rollout.

    more: further arguments of the rollouts.
    """
    model: dict[str, Any] = {"algorithm": {"class_path": f"ts_lightning.losses.{algorithm}"}}
    model |= {"num_iterations": iterations} if iterations > 1 else {}
    changes = {"model": {"init_args": model}, "trainer": {"max_steps": STEPS[iterations]}}
    rewards = mirg.rewards(*mirg.PAPERS, "thought", **more) if thought else mirg.rewards(**more)
    how = f"{'thought rewarded, ' if thought else ''}{''.join(f'{name}, ' for name in more)}"
    name = f"{algorithm}, {how}{iterations} update{'s' * (iterations > 1)}"
    return Row(name, "fit/toy_mirg_grpo.yaml", over(rewards, changes), mirg.GROUNDED)


def constrained(row: Row) -> Row:
    """The same run, asked with constrained decoding."""
    return twist.asked(row, f"{row.name}, asked with constrain", "", constrain=True)


SFT = twist.again(mirg.GROUNDED, "SFT", "")
FREE, WHOLE = setting("MIRG", True, 1), setting("MIRG", True, 1, constrain=True)
GRPO = Row("SFT, then GRPO", "fit/toy_mirg_grpo.yaml", mirg.rewards(*mirg.PAPERS, "thought"), mirg.GROUNDED)
PAPER = twist.again(mirg.GROUNDED_RL, "SFT, then GRPO with the paper's rewards", "")
LATER = {"trainer": {"max_steps": 430}, "model": {"init_args": {"lr_scheduler": {"init_args": {"warmup_steps": 10}}}}}
SLOWER = twist.rate(5e-4)  # a quarter of SFT's rate: it has been through a whole schedule
MORE = Row("SFT, then SFT for as long", SFT.config, over(LATER, SLOWER), mirg.GROUNDED)

TABLES = (
    Table(
        "grpo-settings",
        "GRPO's settings on a development split",
        World(render, {"development": ("grpo_dev-*.tar", "rec")}),
        {"development/acc50": "Acc@0.5", "development/miou": "mIoU", "development/unparsed": "unread"},
        (SFT, constrained(SFT), *(setting(*one) for one in SETTINGS), constrained(FREE), WHOLE, constrained(WHOLE)),
        (),
        "All go on from the same SFT, for about as long: a second update on a rollout costs a third of the first.",
    ),
    Table(
        "grpo",
        "GRPO beside SFT that goes on for as long",
        mirg.WORLD,
        {"pictures/acc50": "Acc@0.5", "pictures/miou": "mIoU", "pictures/unparsed": "unread"},
        (SFT, constrained(SFT), MORE, PAPER, GRPO, constrained(GRPO)),
        (
            Finding("GRPO helps after SFT", SFT.name, GRPO.name, "pictures"),
            Finding("it helps more than SFT for as long", MORE.name, GRPO.name, "pictures"),
            Finding("constrained decoding helps SFT", SFT.name, constrained(SFT).name, "pictures"),
            Finding("GRPO helps where both are asked so", constrained(SFT).name, constrained(GRPO).name, "pictures"),
            Finding("rewarding the boxes of the thought helps", PAPER.name, GRPO.name, "pictures"),
        ),
        "No paper's table. SFT has 600 trajectories, GRPO 2,400 prompts with the truth alone. The thought reward "
        "and the number of steps were chosen on the development split.",
    ),
)
