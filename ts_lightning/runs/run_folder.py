"""Where a run writes: its own folder and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ts_lightning.runs.run_lock import GUARD, NAME, read_lock

HEADER = "# lightning.pytorch=="  # the first line of a configuration that a run has written
FOLDERS = {"checkpoints", "validate", "test", "predict", "pictures", "wandb", "lightning_logs"}
GIVEN = {".yaml", ".yml", ".json", ".out", ".err", ".log", ".txt", ".tar", ".idx"}  # what people put beside a run
_PLACES, _NAMES = {"dirpath", "save_dir", "dir", "sub_dir"}, {"filename", "name", "version", "checkpoint_name"}


def check_folder(root: Path) -> None:
    """ValueError for a `default_root_dir` that holds something which no run has written.

    Other folders may be there (`outputs` is a folder of runs), and so may configurations, logs and shards.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"trainer.default_root_dir: seen the file {root}, expected a folder")
    if not root.is_dir() or _is_run(root):
        return
    foreign = sorted(path.name for path in root.iterdir() if not _may_be_there(path))
    if foreign:
        expected = "expected an empty one, or that of a run"
        raise ValueError(
            f"trainer.default_root_dir: seen {foreign[0]!r} in {root}, which no run has written, {expected}"
        )


def _is_run(root: Path) -> bool:
    if read_lock(root / NAME) is not None or (root / GUARD).is_file():  # one that was killed before its first step
        return True
    configurations = [root / "config.yaml", *(root / name / "config.yaml" for name in ("validate", "test", "predict"))]
    return any(_starts(path) for path in configurations) or any((root / "checkpoints").glob("*.ckpt.sha256"))


def _starts(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER.encode()


def _may_be_there(path: Path) -> bool:
    if path.is_dir():
        return path.name not in FOLDERS
    return path.name.startswith(".") or (path.suffix in GIVEN and path.name != "config.yaml")


def check_writers(config: Any, root: Path) -> None:
    """ValueError for a callback, logger or profiler that is told to write outside of `root`."""
    for where, arguments in _objects(config, "trainer"):
        for name, value in arguments.items():
            if value is None or not isinstance(value, str | Path):
                continue
            if name in _PLACES and not Path(value).resolve().is_relative_to(root.resolve()):
                inside = f"expected a folder in trainer.default_root_dir ({root})"
                raise ValueError(f"{where}.init_args.{name}: seen {str(value)!r:.200}, {inside}")
            if name in _NAMES and (Path(value).is_absolute() or ".." in Path(value).parts):
                raise ValueError(f"{where}.init_args.{name}: seen {str(value)!r:.200}, expected a name")


def _objects(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, arguments) of everything that a configuration builds."""
    value = vars(value) if isinstance(value, Namespace) else value
    if isinstance(value, dict):
        arguments = value.get("init_args")
        if "class_path" in value and arguments:
            yield where, vars(arguments) if isinstance(arguments, Namespace) else arguments
        for key, item in value.items():
            yield from _objects(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _objects(item, f"{where}[{i}]")
