"""Going on by itself: the newest whole checkpoint of a run directory, and whether it belongs to this configuration."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ts_lightning.runs.checkpoint_io import file_sha256, sidecar, sidecar_sums
from ts_lightning.runs.metrics_csv import cut_metrics

log = logging.getLogger("ts_lightning.training")
# Paths (shards and the base are checked by sha256), ranks, workers and loggers: none of them changes what is trained.
MAY_CHANGE = {
    *("config", "ckpt_path", "default_root_dir", "dirpath", "save_dir"),
    *("shards", "manifest", "pretrained", "init_from"),
    *("accelerator", "devices", "num_nodes", "strategy", "num_workers", "plugins"),
    *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "watchdog", "resume"),
}
UNFINISHED = (".*.ckpt*.tmp", ".metrics.csv.*")
LISTED = 8


class Place(NamedTuple):
    """Where a checkpoint stands: optimizer steps done, and whether the validation of the last one is still to come."""

    path: Path
    steps: int
    validation_follows: bool
    config: dict[str, Any] | None


def newest(folder: Path) -> Place | None:
    """The checkpoint with the most steps whose bytes match their sha256; others are named and passed over."""
    places = _places(folder)
    places.sort(key=lambda place: (place.steps, not place.validation_follows, place.path.stat().st_mtime_ns))
    for place in reversed(places):
        sums = sidecar_sums(place.path)
        if sums and file_sha256(place.path) in sums:
            return place
        log.warning("%s: passed over (no sha256 that matches its bytes)", place.path)
    return None


def _places(folder: Path) -> list[Place]:
    places = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            places.append(read_place(path))
        except Exception as error:  # torch, pickle and zipfile each raise their own on a damaged file
            log.warning("%s: passed over (%s)", path, str(error).splitlines()[0][:120])
    return places


def read_place(path: Path) -> Place:
    """Read a checkpoint's place without its tensors; ValueError when it is no training checkpoint."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    loops = checkpoint.get("loops")
    if not loops:
        raise ValueError("no position in a run")
    total = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]
    return Place(path, checkpoint["global_step"], total["completed"] < total["processed"], checkpoint.get("config"))


def continue_run(place: Place, root: Path, config: dict[str, Any], first_process: bool) -> str:
    """Check that `config` is the one of the checkpoint, cut metrics.csv to its step; returns the path to restore."""
    if place.config is not None and (lines := differences(place.config, config)):
        more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise ValueError(
            f"{root}: seen {'; '.join(lines[:LISTED])}{more}, expected the configuration of {place.path.name} in this "
            "folder (paths, ranks, workers and loggers may change; --resume false starts anew, --ckpt_path goes on "
            "with the new settings)"
        )
    if first_process:
        cut_metrics(root / "metrics.csv", place.steps, place.validation_follows)
        print(f"resuming from {place.path} after step {place.steps}", flush=True)
    return str(place.path)


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
