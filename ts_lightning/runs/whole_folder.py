"""An exported folder that is whole or not there: written inside of its place, moved there when all is on the disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ts_lightning.models.backbones.hub_layout import SIDE_FILES
from ts_lightning.models.lora import is_adapter
from ts_lightning.models.package import ROUTER, is_package
from ts_lightning.runs.load import BASE, INSTALLED, is_standalone, run_checkpoint

STAGED = ".export"
# What an export of before has left where the next one of its shape may write nothing.
LEFT = (
    ROUTER,
    "package",
    INSTALLED,
    BASE,
    "*.safetensors",
    "*.safetensors.index.json",
    "certificate.json",
    *SIDE_FILES,
)


def opened_as(folder: Path) -> str | None:
    """What `load` finds in a folder; None for nothing of its kinds."""
    if run_checkpoint(folder) != folder:
        return "run"
    kinds = {"package": is_package, "adapter": is_adapter, "standalone": is_standalone}
    found = (kind for kind, is_kind in kinds.items() if is_kind(folder))
    return next(found, "plain model" if (folder / "config.json").is_file() else None)


@contextmanager
def whole_folder(target: Path, kind: str) -> Iterator[Path]:
    """Where to write an export of `kind`; afterwards `target` has its files, none of an export before, and all others.

    ValueError for a target that holds something of another kind: it would be opened as that still, or be lost.
    OSError in one line where the disk is full or fails: what was there stays.
    """
    if (seen := opened_as(target)) not in (None, kind):
        raise ValueError(f"export: {target}: seen a folder of kind {seen!r}, expected a new one or {kind!r}")
    staged, new = target / STAGED, not target.exists()
    try:
        _remove(staged)  # of an export that was killed
        staged.mkdir(parents=True)
        yield staged
        for pattern in LEFT if seen else ():
            for path in target.glob(pattern):
                _remove(path)
        for path in [*staged.iterdir()]:
            _remove(target / path.name)
            path.rename(target / path.name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"export: {target}: not written ({error}); what was there is as it was") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if new:
            with suppress(OSError):  # it has files
                target.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
