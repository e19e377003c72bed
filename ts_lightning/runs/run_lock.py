"""One writer per run directory: a lock file with job, restart count, host and process, checked before every save."""

import atexit
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "run.lock"
STALE_SECONDS = 120.0
REFRESH_SECONDS = 10.0
FIELDS = {"token", "job", "restart", "host", "pid", "started"}


class RunLock:
    """`acquire` at the start of a fit, `check` before a write, `release` at the end; rank 0 only.

    A requeued job (same job id, higher restart count) takes the lock over at once. So does anybody when the owner's
    process is gone (same host) or has not refreshed the file for `STALE_SECONDS` (another host). An owner that lost
    its lock, say a node that was cut off and woke up, finds out in `check`, before it writes. A thread refreshes the
    file, whatever the run is busy with; with a process that is stopped it stops too.
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
        self.held = False

    def acquire(self) -> None:
        """Take the lock; ValueError when another writer is alive or newer."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self.path.with_name(f".{NAME}.{self.me['token']}")
        mine.write_text(json.dumps(self.me))
        try:
            while not self._take(mine):
                pass
        finally:
            mine.unlink(missing_ok=True)
        self.held = True
        threading.Thread(target=self._refresh, daemon=True, name="run lock").start()
        atexit.register(self.release)
        self._remove_leftovers()
        self.check()

    def check(self) -> None:
        """ValueError when somebody else holds the lock by now."""
        other = _read(self.path)
        if other is None or other["token"] != self.me["token"]:
            by = "nobody (the lock was removed)" if other is None else _name(other)
            raise ValueError(
                f"{self.path.parent}: seen taken over by {by}, expected {_name(self.me)} to be its only writer; "
                "nothing was written"
            )

    def release(self) -> bool:
        """Remove the lock if it is still ours, which is returned."""
        self.held = False
        other = _read(self.path)
        ours = other is not None and other["token"] == self.me["token"]
        if ours:
            self.path.unlink(missing_ok=True)
        return ours

    def _refresh(self) -> None:
        while self.held:
            other = _read(self.path)
            if other is not None and other["token"] != self.me["token"]:
                return  # taken over: the file says that another one is alive
            if other is not None:
                with suppress(OSError):
                    os.utime(self.path)
            time.sleep(REFRESH_SECONDS)

    def _take(self, mine: Path) -> bool:
        """Put the file `mine` in the lock's place; False when the lock changed meanwhile, ValueError when it is kept.

        A lock without an owner may be replaced by the one process that has the name of its successor; should that one
        die too, by the successor of the successor.
        """
        place, passed = self.path, []
        while not _placed(mine, place):
            other = _read(place)
            if other is not None and other["token"] != self.me["token"] and not self._replaceable(other, place):
                seen = f"seen in use by {_name(other)}, expected no other run in this folder"
                raise ValueError(f"{self.path.parent}: {seen}")
            passed.append(other)
            place = self.path.with_name(f".{NAME}.{other['token'] if other else len(passed)}.next")
        if not passed:
            return True
        unchanged = self.path.exists() and _read(self.path) == passed[0]
        if unchanged:
            os.replace(mine, self.path)
        place.unlink(missing_ok=True)
        return unchanged

    def _remove_leftovers(self) -> None:
        """Delete what killed starters left over; younger files may be those of one that starts just now."""
        for path in self.path.parent.glob(f".{NAME}.*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def _replaceable(self, other: dict[str, Any], path: Path) -> bool:
        if other["job"] and other["job"] == self.me["job"]:
            return int(other["restart"]) < int(self.me["restart"]) or not _alive(other, path)
        return not _alive(other, path)


def _placed(temporary: Path, path: Path) -> bool:
    """Give a file a second name unless that is taken; of several processes one succeeds."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: two that start at the same moment may both pass
        if path.exists():
            return False
        path.write_bytes(temporary.read_bytes())
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text())
        return stored if set(stored) == FIELDS else None
    except (OSError, ValueError, TypeError):
        return None


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
