"""The start of `fit` in a run directory: take it, clean it, find what to restore."""

import os
import secrets
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from ts_lightning.training.metrics_csv import cut_metrics
from ts_lightning.training.resume import continue_run, newest, read_place, remove_unfinished, set_aside
from ts_lightning.training.run_keeper import RunKeeper
from ts_lightning.training.run_lock import RunLock


def begin_run(root: Path, keeper: RunKeeper, given: str | None, resume: bool) -> str | None:
    """The checkpoint to restore: the given one, or the newest whole one of this run, or none.

    A requeued job goes on from its own newest, also where its script names another `--ckpt_path`. Rank 0 takes the
    lock of the directory, removes what killed saves left over, and cuts metrics.csv to the restored step. A run that
    starts anew renames what is there. ValueError when another run writes here, or the configuration changed.
    """
    is_first, folder = first_process(), root / "checkpoints"
    if is_first:
        keeper.lock = RunLock(root)
        keeper.lock.acquire()
        remove_unfinished(folder)
    try:
        if given is not None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
            if is_first:
                _continue_metrics(root, Path(given))
            return given
        found = newest(folder) if resume else None
        if found is not None:
            return continue_run(found, root, keeper.config or {}, is_first)
        if is_first:
            set_aside(root / "metrics.csv")
            set_aside(folder)
        return given
    except BaseException:
        if keeper.lock is not None:
            keeper.lock.release()
        raise


def _continue_metrics(root: Path, given: Path) -> None:
    if given.is_file() and given.parent.resolve() == (root / "checkpoints").resolve():
        place = read_place(given)
        cut_metrics(root / "metrics.csv", place.steps, place.validation_follows)
    else:
        set_aside(root / "metrics.csv")


def keep_wandb_run(root: Path) -> None:
    """One W&B run for one run directory, over all its restarts; WANDB_RUN_ID in the environment goes first."""
    path = root / "wandb_run_id"
    if "WANDB_RUN_ID" not in os.environ:
        if not path.is_file() and first_process():
            root.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(4))
        if path.is_file():
            os.environ["WANDB_RUN_ID"] = path.read_text().strip()


def first_process() -> bool:
    """Whether this process is rank 0, known before there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0
