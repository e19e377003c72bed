"""Checkpoint files that are whole or absent: written beside the target, flushed, renamed, with a sha256 sidecar."""

import hashlib
import os
import tempfile
import uuid
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO as LightningCheckpointIO

from ts_lightning.data.loader import lost_worker
from ts_lightning.models.package import file_sha256


class CheckpointIO(LightningCheckpointIO):
    """Atomic save in the target's own folder, verified load.

    `last.ckpt` gets a neighbour `last.ckpt.sha256` in the format of sha256sum. While a file is being replaced the
    sidecar lists the old and the new sum, so that a crash at any moment leaves a checkpoint that verifies.
    Loading never unpickles anything but tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; the file at `path` changes in one rename, after everything is on disk.

        OSError, one line, when the disk is full or fails; the file that was there stays as it was.
        """
        path = Path(path)
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            with open(descriptor, "wb") as file:
                writer = _HashingWriter(file)
                torch.save(checkpoint, writer)  # type: ignore[arg-type]
                _flush(file)
            os.chmod(temporary, 0o644)
            digest = writer.sha256.hexdigest()
            _write_sidecar(path, [digest, *(sidecar_sums(path) if path.exists() else [])])
            os.replace(temporary, path)
            temporary = None
            sync(path.parent)
            _write_sidecar(path, [digest])
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            if lost_worker(error):  # its signal comes wherever the trainer is
                raise
            reason = str(error.__cause__ or error.__context__ or error).splitlines()[0]
            raise OSError(f"checkpoint {path}: not saved ({reason}); the one before is untouched") from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, always with `weights_only=True`.

        FileNotFoundError if there is none; ValueError (one line) if its bytes are not those that were written, if it
        is truncated, or if it is no checkpoint.
        """
        path = Path(path)
        if path.is_symlink():  # save_last: link; the sum is that of the file
            path = path.resolve()
        if not path.is_file():
            kind = "no file, but something else" if path.exists() else "no such file"
            raise FileNotFoundError(f"checkpoint {path}: {kind}")
        expected = sidecar_sums(path)
        if expected and (seen := file_sha256(path)) not in expected:
            raise ValueError(
                f"checkpoint {path}: truncated or changed since it was saved: seen {path.stat().st_size} bytes with "
                f"sha256 {seen[:12]}, expected sha256 {expected[0][:12]} of {sidecar(path).name}"
            )
        try:
            packed = _compressed_size(path)
            if packed is None:
                checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch, pickle and zipfile each raise their own
            why = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
            seen = f"seen {path.stat().st_size} bytes that can't be read ({why})"
            raise ValueError(f"checkpoint {path}: truncated or not a checkpoint: {seen}") from error
        if packed is not None:
            most = path.stat().st_size
            raise ValueError(f"checkpoint {path}: seen {packed} bytes inside, expected at most {most}")
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            kind = (
                f"keys {sorted(map(str, checkpoint))[:5]}"
                if isinstance(checkpoint, dict)
                else type(checkpoint).__name__
            )
            raise ValueError(f"checkpoint {path}: seen {kind}, expected a training checkpoint with a state_dict")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint and its sidecar."""
        path = Path(path)
        path.unlink(missing_ok=True)
        sidecar(path).unlink(missing_ok=True)


def _compressed_size(path: Path) -> int | None:
    """The bytes in a zip that unpacks to more than its own size: torch never compresses, it is made to fill memory."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    return size if size > path.stat().st_size else None


def sidecar(path: Path) -> Path:
    """The file that holds a checkpoint's sha256."""
    return path.with_name(path.name + ".sha256")


def sidecar_sums(path: Path) -> list[str]:
    """The sha256 sums that are good for this checkpoint; none if it travelled without its sidecar."""
    if not sidecar(path).is_file():
        return []
    return [line.split()[0] for line in sidecar(path).read_text(errors="replace").splitlines() if line.strip()]


class _HashingWriter:
    """Passes torch's (strictly sequential) writes on and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_sidecar(path: Path, sums: list[str]) -> None:
    replace_file(sidecar(path), "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(sums)))
    sync(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Write a small file in one rename; OSError in one line, with its name, where the disk is full or fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            _flush(file)
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> OSError:
    """What the disk said, with the name of the file that could not be written."""
    return OSError(f"{path}: not written ({error.strerror or error})")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
