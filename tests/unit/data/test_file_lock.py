"""The lock on a file, on file systems that have none."""

import errno
import fcntl
from pathlib import Path

import pytest

from ts_lightning.data.file_lock import locked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_nobody_is_kept_out(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock"), locked(tmp_path / "lock"):
        pass


def test_a_disk_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "flock")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="flock"), locked(tmp_path / "lock"):
        pass
