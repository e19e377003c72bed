"""`ts-lightning quickstart`."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from ts_lightning.cli.configurations import find_configuration


def quickstart(
    *,
    out: Path = Path("outputs/quickstart"),
    shards: Path = Path("data_shards/toy_world"),
    steps: int | None = None,
    train: int = 32000,
    val: int = 400,
    overrides: Sequence[str] = (),
) -> None:
    """The main job on the toy world: render, score the base, tune, score again, certify, report.

        ts-lightning quickstart
        ts-lightning quickstart --steps 60 --train 2000 --val 100       (a look at it, a minute or two)

    Any --trainer.X, --model.X and --data.X of `fit` goes to the training.

    Args:
        out: folder of the run, the report, the certificate and the pictures
        shards: where the toy world is rendered
        steps: of the training, in place of the configuration's
        train: questions to render for training, up to four about a scene
        val: held-out records of each suite
        overrides: options of `fit`
    """
    from ts_lightning.cli.main_job import main_job
    from ts_lightning.pipelines.toy_world.shards import write_toy_shards

    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*litlogger.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    print(f"rendering the toy world into {shards}, where it is not there yet", flush=True)
    write_toy_shards(shards, train, val)
    limits = [] if steps is None else [f"--trainer.max_steps={steps}"]
    table = main_job(find_configuration("fit/toy_twist.yaml"), shards, out, [*limits, *overrides])
    print(f"\n{table}\n\n{out}/report.md, report.json, curves.png, pictures/")
