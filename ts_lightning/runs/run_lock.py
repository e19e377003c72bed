"""One writer per run directory: a lock file with job, restart count, host and process, checked before every save."""

import atexit
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ts_lightning.data.file_lock import locked
from ts_lightning.runs.checkpoint_io import replace_file

NAME, GUARD = "run.lock", ".run.lock.guard"
STALE_SECONDS = 120.0
REFRESH_SECONDS = 10.0
GUARD_SECONDS = 30.0
FIELDS = {"token": str, "job": str, "restart": int, "host": str, "namespace": str, "pid": int, "started": str}


class RunLock:
    """`acquire` at the start of a fit, `check` before a write, `release` at the end; rank 0 only.

    A requeued job (same job id, higher restart count) takes the lock over at once. So does anybody when the owner's
    process is gone (same host and container) or has not refreshed the file for `STALE_SECONDS` (another one). An owner
    that lost its lock, say a node that was cut off and woke up, finds out in `check`, before it writes. A thread
    refreshes the file, whatever the run is busy with; with a process that is stopped it stops too.

    The kernel's lock alone (`flock`) can't do that: it has no owner that is named, it is not handed over to a
    requeued job while the first node hangs, and a node that lost it is not told. It guards the moment in which two
    starters judge the same file.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root) / NAME
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        self.me: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": int(restart) if restart.isdigit() else 0,
            "host": socket.gethostname(),
            "namespace": process_namespace(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
        }
        self.held = False
        self._released = threading.Event()
        self._refreshing: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock; ValueError when another writer is alive or newer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _guard(self.path.parent):
            other = read_lock(self.path)
            if other is not None and other["token"] != self.me["token"] and not self._replaceable(other):
                seen = f"seen in use by {_name(other)}, expected no other run in this folder"
                raise ValueError(f"{self.path.parent}: {seen}")
            replace_file(self.path, json.dumps(self.me))
        self.held = True
        self._released.clear()
        self._refreshing = threading.Thread(target=self._refresh, daemon=True, name="run lock")
        self._refreshing.start()
        atexit.register(self.release)
        self.check()

    def check(self) -> None:
        """ValueError when the lock was held and somebody else holds it by now."""
        if not self.held:
            return
        other = read_lock(self.path)
        if other is None or other["token"] != self.me["token"]:
            by = "nobody (the lock was removed)" if other is None else _name(other)
            raise ValueError(
                f"{self.path.parent}: seen taken over by {by}, expected {_name(self.me)} to be its only writer; "
                "nothing was written"
            )

    def release(self) -> bool:
        """Remove the lock if it is still ours, which is returned."""
        self.held = False
        self._released.set()
        if self._refreshing:  # else it may touch the file of whoever comes next; a disk that hangs is not waited for
            self._refreshing.join(1)
        with suppress(OSError, ValueError):  # on a disk that went away there is nothing to remove
            other = read_lock(self.path)
            if other is not None and other["token"] == self.me["token"]:
                self.path.unlink(missing_ok=True)
                return True
        return False

    def _refresh(self) -> None:
        while not self._released.is_set():
            with suppress(OSError, ValueError):
                other = read_lock(self.path)
                if other is not None and other["token"] != self.me["token"]:
                    return  # taken over: the file says that another one is alive
                if other is not None:
                    os.utime(self.path)
            self._released.wait(REFRESH_SECONDS)

    def _replaceable(self, other: dict[str, Any]) -> bool:
        same_job = other["job"] and other["job"] == self.me["job"]
        return (same_job and other["restart"] < self.me["restart"]) or not _alive(other, self.path)


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Of several processes one at a time, where the file system can lock; else `check` finds the second one out."""
    with locked(folder / GUARD, GUARD_SECONDS) as ours:
        if not ours:
            raise ValueError(f"{folder}: seen others that start here for {GUARD_SECONDS:.0f} s, expected one")
        yield


def read_lock(path: Path) -> dict[str, Any] | None:
    """What the lock file says; None where there is none, or nothing of ours in it. ValueError for no file at all."""
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"{path}: seen something that is no file, expected the lock of a run")
    try:
        stored = {"namespace": "", **json.loads(path.read_text())}  # files of older versions have none
        known = set(stored) == set(FIELDS) and all(type(stored[name]) is kind for name, kind in FIELDS.items())
        return stored if known else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):
        return None


def _alive(other: dict[str, Any], path: Path) -> bool:
    """Whether the owner's process lives; of one that can't be seen from here, whether the file was refreshed.

    That is another host's, or another container's of a host: by the clock of the file's disk.
    """
    if process_namespace() and (other["host"], other["namespace"]) == (socket.gethostname(), process_namespace()):
        return process_start(other["pid"]) == other["started"]
    clock = path.with_name(GUARD)  # hosts' clocks differ: a file that was touched just now shows the disk's
    clock.touch()
    try:
        return abs(clock.stat().st_mtime - path.stat().st_mtime) < STALE_SECONDS
    except FileNotFoundError:
        return False


def _name(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']} restart {owner['restart']} " if owner["job"] else ""
    return f"{job}process {owner['pid']} on {owner['host']}"


def process_namespace() -> str:
    """Names what the process ids of this process count in: a container has its own; empty where there is no /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Names one life of a process id (its start in clock ticks); empty when there is no such process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return ""
