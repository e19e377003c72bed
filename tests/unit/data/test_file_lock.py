"""The lock on a file, also on file systems that have none."""

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from ts_lightning.data.file_lock import NO_LOCKS, locked


@pytest.mark.parametrize("number", sorted(NO_LOCKS))
def test_without_locks_nobody_is_kept_out(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", 0) as first, locked(tmp_path / "lock", 0) as second:
        assert (first, second) == (True, True)


def test_a_disk_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "flock")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="flock"), locked(tmp_path / "lock"):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock", 0.2) as second:
        assert (first, second) == (True, False)
    assert time.monotonic() - began >= 0.2


def test_a_lock_ends_with_its_block_whatever_was_forked_meanwhile(tmp_path: Path) -> None:
    """A loader's process has all open files of its rank, where a thread fetches ahead."""
    with locked(tmp_path / "lock"):
        if not (child := os.fork()):
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path / "lock", 0) as free:
            assert free
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
