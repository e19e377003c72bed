"""The start of `fit` in a run directory: take it, find the newest whole checkpoint, check that it belongs here."""

import logging
import os
import re
import secrets
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

from ts_lightning.models.package import file_sha256
from ts_lightning.runs.checkpoint_io import replace_file, sidecar, sidecar_sums
from ts_lightning.runs.class_paths import renamed
from ts_lightning.runs.metrics_log import NAME, RESUMED, TABLE, MetricsLog, complete_table, finished_steps
from ts_lightning.runs.position import validation_to_come
from ts_lightning.runs.run_lock import RunLock
from ts_lightning.runs.watchdog import remove_marks

log = logging.getLogger("ts_lightning.runs")
# Paths (shards and the base are checked by sha256), ranks, workers and loggers: none of them changes what is trained.
MAY_CHANGE = {
    *("config", "ckpt_path", "default_root_dir", "dirpath", "save_dir"),
    *("shards", "manifest", "pretrained", "init_from"),
    *("accelerator", "devices", "num_nodes", "strategy", "num_workers", "plugins"),
    *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "watchdog", "resume"),
}
MAY_GROW = ("trainer.max_steps", "trainer.max_epochs")
JOB = "slurm_job_id"  # the job that began the run, or went on with it, last
UNFINISHED = (".*.ckpt*.tmp", ".metrics.csv*", ".run.lock.*.tmp", ".wandb_run_id.*.tmp", f".{JOB}.*.tmp")
PACKAGES = {"torch": "torch", "transformers": "transformers", "lightning": "lightning", "ts_lightning": "ts-lightning"}
LISTED = 8


class Finished(Exception):
    """The run has nothing left to do; nothing was changed."""


class Place(NamedTuple):
    """Where a checkpoint stands: optimizer steps done, and whether the validation of the last one is still to come.

    None: it may be, saved in a hook at the step's end, as by ModelCheckpoint.
    """

    path: Path
    steps: int
    validation_follows: bool | None
    config: dict[str, Any] | None
    versions: dict[str, str]
    epochs: int


class Start(NamedTuple):
    """How a run begins: the checkpoint to restore, if any, and what is done to its folder once all checks have passed.

    `steps`: the run goes on after so many; None for a new run. `newer_than`: checkpoints with more steps are moved
    away; None leaves all where they are.
    """

    ckpt_path: str | None
    steps: int | None
    newer_than: int | None
    wandb_run: str | None


def begin_run(root: Path, lock: RunLock, config: dict[str, Any], given: str | None, resume: bool) -> Start:
    """Find what to restore: the given checkpoint ("last": this run's last.ckpt), or its newest whole one, or none.

    A requeued job that had begun here goes on from its own newest, also where its script says `--resume false` or names
    another `--ckpt_path`. Rank 0 takes the lock of the directory; nothing else in it is touched before `settle`.
    ValueError when another run writes here, or the configuration changed; `Finished` when this run has nothing left to
    do.
    """
    folder, is_first = root / "checkpoints", first_process()
    given = _file(given, folder)
    if is_first:
        lock.acquire()
    try:
        found = newest(folder) if _began_before(root, resume) or (resume and given is None) else None
        of_run = given is not None and Path(given).is_file() and _within(Path(given), folder)
        place = read_place(Path(str(given))) if of_run else None
        if found is not None and (place is None or found.steps > place.steps):  # else it is that one by another name
            start = Start(str(found.path), found.steps, None, wandb_run(root, new=False))
            _check(found, root, config)
            if is_first:
                print(f"resuming from {found.path} after step {found.steps}", flush=True)
        elif place is not None:
            start = Start(given, place.steps, place.steps, wandb_run(root, new=False))
        else:  # a new run
            start = Start(given, None, -1, wandb_run(root, new=True))
        names_it = given is not None and start.ckpt_path == given and Path(given).is_file()
        if names_it and (fault := _fault(Path(str(given)))) is not None:
            raise ValueError(f"checkpoint {given}: {fault}")
        if is_first:
            remove_marks(root)  # the other ranks wait for this one before they write theirs
        if start.wandb_run is not None:
            os.environ["WANDB_RUN_ID"] = start.wandb_run
        return start
    except BaseException:
        lock.release()
        raise


def _began_before(root: Path, resume: bool) -> bool:
    """Whether this is a requeued job that was the last to begin here: what the folder holds is then its own.

    Runs of older versions do not name their job: they are taken for its own, but for `--resume false`.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") in ("", "0"):
        return False
    path = root / JOB
    return path.read_text() == os.environ.get("SLURM_JOB_ID") if path.is_file() else resume


def _file(given: str | None, folder: Path) -> str | None:
    """The file that `--ckpt_path` means; ValueError for a `last` that isn't there, and `hpc`, which nothing writes."""
    if given == "hpc":
        raise ValueError("--ckpt_path: seen 'hpc', expected a file or last: a requeued job goes on by itself")
    if given != "last":
        return given
    path = folder / "last.ckpt"
    if not path.is_file():
        raise ValueError(
            f"--ckpt_path: seen 'last' and no {path}, expected it there, or a file (without --ckpt_path a run goes on "
            "from its newest checkpoint)"
        )
    return str(path)


def settle(start: Start, root: Path, metrics: MetricsLog | None) -> None:
    """Make the folder that of the run which begins: rank 0, when every check has passed and before the first step.

    What killed processes left over is removed. What is no part of this run is renamed, never deleted.
    """
    folder = root / "checkpoints"
    remove_unfinished(root)
    remove_unfinished(folder)
    if start.steps is None:
        for name in (NAME, TABLE, "wandb_run_id"):
            set_aside(root / name)
    if start.ckpt_path is None:
        set_aside(folder)
    elif start.newer_than is not None:
        set_newer_aside(folder, start.newer_than)
    if start.steps is not None and metrics is not None:
        metrics.mark(RESUMED, start.steps)
    if start.wandb_run is not None and not (root / "wandb_run_id").exists():
        replace_file(root / "wandb_run_id", start.wandb_run)
    replace_file(root / JOB, os.environ.get("SLURM_JOB_ID", ""))


def newest(folder: Path) -> Place | None:
    """The checkpoint with the most steps that is whole, of ours, and finite; others are named and passed over.

    Of several of one step: one after its validation, or else one that says that it is still to come.
    """
    places = _places(folder)
    known = (None, True, False)
    places.sort(key=lambda it: (it.steps, known.index(it.validation_follows), it.path.stat().st_mtime_ns))
    for place in reversed(places):
        sums = sidecar_sums(place.path)
        if not sums or file_sha256(place.path) not in sums:
            log.warning("%s: passed over (no sha256 that matches its bytes)", place.path)
        elif place.config is None:
            log.warning("%s: passed over (no configuration: `ts-lightning fit` did not write it)", place.path)
        elif (fault := _fault(place.path)) is not None:
            log.warning("%s: passed over (%s)", place.path, fault)
        else:
            return place
    return None


def _places(folder: Path) -> list[Place]:
    places = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            places.append(read_place(path))
        except Exception as error:  # torch, pickle and zipfile each raise their own on a damaged file
            log.warning("%s: passed over (%s)", path, (str(error) or type(error).__name__).splitlines()[0][:120])
    return places


def read_place(path: Path) -> Place:
    """Read a checkpoint's place without its tensors; ValueError (one line) when it has no place in a run."""
    if not path.is_file():
        raise ValueError(f"checkpoint {path}: seen something that is no file")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    try:
        loops, steps = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
        follows, epochs = validation_to_come(checkpoint), loops["epoch_progress"]["current"]
        taken = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
        ended = epochs["processed"]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"checkpoint {path}: seen no position in a run") from None
    if type(steps) is not int or not 0 <= steps == taken:
        raise ValueError(f"checkpoint {path}: seen global_step {str(steps)[:40]!r}, expected {taken!r} as in its loops")
    versions, stored = checkpoint.get("versions"), checkpoint.get("config")
    by_command = isinstance(stored, dict) and "trainer" in stored  # else of a module that no command line made
    config = renamed(stored) if by_command else None
    follows = follows if isinstance(follows, bool) else None
    return Place(path, steps, follows, config, versions if isinstance(versions, dict) else {}, ended)


def _fault(path: Path) -> str | None:
    """What keeps a run from going on from a checkpoint: NaN, Inf, or no version, which Lightning's restoring reads."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(version := checkpoint.get("pytorch-lightning_version"), str):
        return f"seen pytorch-lightning_version {version!r}, expected the version that wrote it"
    bad = (name for name, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all())
    return next((f"seen NaN or Inf in {name}, expected finite weights" for name in bad), None)


def _check(place: Place, root: Path, config: dict[str, Any]) -> None:
    """ValueError when `config` is not the one of the checkpoint; `Finished` when that has done all of it.

    Longer training is allowed and said, so are other versions of the libraries.
    """
    lines = differences(place.config, config) if place.config else []
    longer = [line for line in lines if _grows(line)]
    if others := [line for line in lines if line not in longer]:
        more = f"; and {len(others) - LISTED} more" if len(others) > LISTED else ""
        raise ValueError(
            f"{root}: seen {'; '.join(others[:LISTED])}{more}, expected the configuration of {place.path.name} in this "
            "folder (paths, ranks, workers and loggers may change; max_steps and max_epochs may grow; --resume false "
            "starts anew, --ckpt_path goes on with the new settings, but for the rates of a schedule of torch's)"
        )
    trainer = config.get("trainer", {})
    if not longer and _is_finished(place, root, trainer.get("max_steps"), trainer.get("max_epochs")):
        if first_process():  # a full disk may have cut off the last things that a run writes
            remove_marks(root)
            complete_table(root)
        raise Finished(
            f"finished: {place.path} holds the last step, {place.steps}; nothing was changed (a larger "
            "trainer.max_steps goes on from it, unless EarlyStopping ended it; --resume false starts anew)"
        )
    if first_process():
        for line in longer:
            text = "goes on; from here on the learning rate follows the schedule of the longer run"
            print(f"{line}: {text}, unless lr_scheduler has its own total_steps", flush=True)
        now = versions_now()
        if changed := [
            f"{name} {old} -> {now[name]}" for name, old in place.versions.items() if now.get(name, old) != old
        ]:
            print(
                f"{place.path.name} was written with other versions: {', '.join(changed)}; the run may not end bit "
                "for bit as it would have",
                flush=True,
            )


def _is_finished(place: Place, root: Path, max_steps: Any, max_epochs: Any) -> bool:
    """Whether all of a run's steps and their validation are done, or its log says that it ended here, as stopped early.

    EarlyStopping's own state does not say it: `min_steps` may have let the run go on.
    """
    steps_done = isinstance(max_steps, int) and 0 < max_steps <= place.steps
    epochs_done = isinstance(max_epochs, int) and 0 < max_epochs <= place.epochs
    validated = place.validation_follows is False
    return ((steps_done or epochs_done) and validated) or finished_steps(root) == place.steps


def versions_now() -> dict[str, str]:
    """The versions that a checkpoint notes: of the libraries that decide on its numbers, and ours."""
    found = {}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines "name: old -> new" of settings that change what is trained; the folder of an installed package may move."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
        and not MAY_CHANGE & set(re.split(r"[.\[\]]+", name))
        and not (".packages." in name and name in before and name in after)
    ]


def _grows(line: str) -> bool:
    match = re.fullmatch(rf"({'|'.join(map(re.escape, MAY_GROW))}): (\d+) -> (-1|\d+)", line)
    return match is not None and (match[3] == "-1" or int(match[3]) > int(match[2]))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
    else:
        yield name, value


def set_aside(path: Path) -> None:
    """Rename a file or folder to name.1.suffix, name.2.suffix ...: what an earlier run wrote is never deleted."""
    if path.exists():
        path.rename(_free(path))


def set_newer_aside(folder: Path, steps: int) -> None:
    """Move checkpoints with more than `steps` steps to folder.1, folder.2 ...: a run goes on from before them."""
    if newer := [place.path for place in _places(folder) if place.steps > steps]:
        (aside := _free(folder)).mkdir()
        for file in (file for path in newer for file in (path, sidecar(path)) if file.exists()):
            file.rename(aside / file.name)


def _free(path: Path) -> Path:
    number = 1
    while (old := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return old


def remove_unfinished(folder: Path) -> None:
    """Delete what killed writers left over in `folder`; only the owner of the run directory may."""
    for path in (path for pattern in UNFINISHED for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)


def wandb_run(root: Path, new: bool) -> str | None:
    """The id of the one W&B run for this run over all its restarts; None where WANDB_RUN_ID is set already."""
    path = root / "wandb_run_id"
    if "WANDB_RUN_ID" in os.environ:
        return None
    return path.read_text().strip() if path.is_file() and not new else secrets.token_hex(4)


def first_process() -> bool:
    """Whether this process is rank 0, known before there is a trainer."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.parent.resolve(), path.resolve().parent)
