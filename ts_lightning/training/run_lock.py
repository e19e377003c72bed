"""One writer per run directory: a lock file with job, restart count, host and process, checked before every save."""

import atexit
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "run.lock"
STALE_SECONDS = 120.0
REFRESH_SECONDS = 10.0


class RunLock:
    """`acquire` at the start of a fit, `check` before a write, `release` at the end; rank 0 only.

    A requeued job (same job id, higher restart count) takes the lock over at once. So does anybody when the owner's
    process is gone (same host) or has not refreshed the file for `STALE_SECONDS` (another host). An owner that lost
    its lock, say a node that was cut off and woke up, finds out in `check`, before it writes.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root) / NAME
        self.me: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
        }
        self.refreshed = 0.0

    def acquire(self) -> None:
        """Take the lock; ValueError when another writer is alive or newer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        other = self._read()
        if other is not None and other["token"] != self.me["token"] and not self._replaceable(other):
            raise ValueError(f"{self.path.parent}: seen in use by {_name(other)}, expected no other run in this folder")
        temporary = self.path.with_name(f".{NAME}.{self.me['token']}")
        temporary.write_text(json.dumps(self.me))
        os.replace(temporary, self.path)
        atexit.register(self.release)
        self.check()

    def check(self) -> None:
        """ValueError when somebody else holds the lock by now."""
        other = self._read()
        if other is None or other["token"] != self.me["token"]:
            by = "nobody (the lock was removed)" if other is None else _name(other)
            raise ValueError(
                f"{self.path.parent}: seen taken over by {by}, expected {_name(self.me)} to be its only writer; "
                "nothing was written"
            )

    def refresh(self) -> None:
        """Say that the owner is alive; cheap enough for every step."""
        if time.monotonic() - self.refreshed > REFRESH_SECONDS:
            self.refreshed = time.monotonic()
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> bool:
        """Remove the lock if it is still ours, which is returned."""
        other = self._read()
        ours = other is not None and other["token"] == self.me["token"]
        if ours:
            self.path.unlink(missing_ok=True)
        return ours

    def _read(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self.path.read_text())
            return stored if set(stored) == set(self.me) else None
        except (OSError, ValueError, TypeError):
            return None

    def _replaceable(self, other: dict[str, Any]) -> bool:
        if other["job"] and other["job"] == self.me["job"]:
            return int(other["restart"]) < int(self.me["restart"]) or not _alive(other, self.path)
        return not _alive(other, self.path)


def _alive(other: dict[str, Any], path: Path) -> bool:
    if other["host"] == socket.gethostname():
        return process_start(other["pid"]) == other["started"]
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def _name(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']} restart {owner['restart']} " if owner["job"] else ""
    return f"{job}process {owner['pid']} on {owner['host']}"


def process_start(pid: int) -> str:
    """Names one life of a process id (its start in clock ticks); empty when there is no such process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return ""
