"""An exported folder that is whole or not there: written inside of its place, moved there when all is on the disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ts_lightning.data.file_lock import locked
from ts_lightning.models.backbones.hub_layout import SIDE_FILES
from ts_lightning.models.lora import is_adapter
from ts_lightning.models.package import ROUTER, is_package
from ts_lightning.runs.load import BASE, INSTALLED, is_standalone, run_checkpoint

STAGED = ".export"
CERTIFICATE = "certificate.json"
# What an export of before has left where the next one of its shape may write nothing.
LEFT = {
    "package": (ROUTER, CERTIFICATE),
    "adapter": (CERTIFICATE,),
    "standalone": (
        *("package", "adapter", INSTALLED, BASE, CERTIFICATE),
        *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *SIDE_FILES),
    ),
}


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

    ValueError for a target that holds something of another kind, or, where there was no export, files of these names:
    it would be opened as that still, or be lost. OSError in one line where the disk is full or fails, and beside
    another export to the same place: what was there stays.
    """
    if (seen := opened_as(target)) not in (None, kind):
        raise ValueError(f"export: {target}: seen a folder of kind {seen!r}, expected a new one or {kind!r}")
    staged, new = target / STAGED, not target.exists()
    staged.mkdir(parents=True, exist_ok=True)
    with locked(staged / "lock", seconds=0) as ours:
        if not ours:
            raise OSError(f"export: {target}: seen another export that is being written there, expected to be alone")
        try:
            yield from _staged(staged, target, LEFT[kind] if seen else None)
        except Exception as error:
            if isinstance(error, OSError | SafetensorError) or type(error) is Exception:  # tokenizers say no more
                raise OSError(f"export: {target}: not written ({error}); what was there is as it was") from error
            raise
        finally:
            (staged / "lock").unlink(missing_ok=True)
            for folder in (staged, *([target] if new else [])):
                with suppress(OSError):  # it has files
                    folder.rmdir()


def _staged(staged: Path, target: Path, left: tuple[str, ...] | None) -> Iterator[Path]:
    """A new folder; what was written there then goes to `target`, in place of what the patterns `left` find.

    ValueError for names that are taken, where `left` is None.
    """
    written, before = staged / "new", staged / "before"
    for folder in (written, before):
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was killed
        folder.mkdir()
    try:
        yield written
        names = {path.name for path in written.iterdir()}
        there = {name for name in names if os.path.lexists(target / name)}
        if there and left is None:
            expected = "expected a new folder, or an export of before"
            raise ValueError(f"export: {target}: seen {', '.join(sorted(there))} of something else, {expected}")
        there |= {path.name for pattern in left or () for path in target.glob(pattern)}
        _move([(target / name, before / name) for name in there] + [(written / name, target / name) for name in names])
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(written, ignore_errors=True)
        with suppress(OSError):  # what could not be put back
            before.rmdir()


def _move(pairs: list[tuple[Path, Path]]) -> None:
    """Rename each (from, to); where one can't be, or the export is stopped, none is."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in pairs:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
