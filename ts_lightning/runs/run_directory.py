"""The start of `fit` in a run directory: take it, clean it, find what to restore."""

import os
import secrets
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from ts_lightning.runs.metrics_csv import cut_metrics
from ts_lightning.runs.resume import continue_run, newest, read_place, remove_unfinished, set_aside, set_newer_aside
from ts_lightning.runs.run_keeper import RunKeeper
from ts_lightning.runs.run_lock import RunLock
from ts_lightning.runs.watchdog import remove_marks


def begin_run(root: Path, keeper: RunKeeper, given: str | None, resume: bool) -> str | None:
    """The checkpoint to restore: the given one, or the newest whole one of this run, or none.

    A requeued job goes on from its own newest, also where its script names another `--ckpt_path`. Rank 0 takes the
    lock of the directory, removes what killed processes left over, and cuts metrics.csv to the restored step. What
    is no part of the run that starts here (all, or what is newer than the given checkpoint) is renamed. ValueError
    when another run writes here, or the configuration changed.
    """
    is_first, folder = first_process(), root / "checkpoints"
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    if is_first:
        keeper.lock = RunLock(root)
        keeper.lock.acquire()
    try:
        if is_first:
            remove_unfinished(root)
            remove_unfinished(folder)
            remove_marks(root)  # the other ranks wait for this one before they write theirs
        found = newest(folder) if resume and (requeued or given is None) else None
        restored = given
        if found is not None and (given is None or found.path.resolve() != Path(given).resolve()):
            restored = continue_run(found, root, keeper.config or {}, is_first)
        elif is_first and given is not None:
            _branch_off(root, Path(given))
        elif is_first:
            for name in ("metrics.csv", "checkpoints", "wandb_run_id"):
                set_aside(root / name)
        if is_first:
            keep_wandb_run(root)
        return restored
    except BaseException:
        if keeper.lock is not None:
            keeper.lock.release()
        raise


def _branch_off(root: Path, given: Path) -> None:
    """Make `given` the newest of its run; a checkpoint from elsewhere begins a new one."""
    folder = root / "checkpoints"
    if given.is_file() and folder.resolve() in (given.parent.resolve(), given.resolve().parent):
        place = read_place(given)
        cut_metrics(root / "metrics.csv", place.steps, place.validation_follows)
        set_newer_aside(folder, place.steps)
        return
    for name in ("metrics.csv", "wandb_run_id"):
        set_aside(root / name)
    if given.is_file():  # Lightning looks into the folder for "last", "best" and "hpc"
        set_newer_aside(folder, -1)


def keep_wandb_run(root: Path) -> None:
    """One W&B run for one run directory, over all its restarts; WANDB_RUN_ID in the environment goes first."""
    path = root / "wandb_run_id"
    if "WANDB_RUN_ID" not in os.environ:
        if not path.is_file():
            path.write_text(secrets.token_hex(4))
        os.environ["WANDB_RUN_ID"] = path.read_text().strip()


def first_process() -> bool:
    """Whether this process is rank 0, known before there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0
