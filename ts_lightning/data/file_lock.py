"""The kernel's lock on a file, where its file system has locks."""

import errno
import fcntl
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # NFS without its lock daemon, some clusters' and FUSE
PAUSE = 0.05  # seconds between two tries


@contextmanager
def locked(path: str | Path, seconds: float = math.inf) -> Iterator[bool]:
    """Whether the lock on the file came within `seconds` of waiting; a file system without locks keeps nobody out.

    The lock (flock, which NFSv4 has between hosts too) goes with its process, however that ends.
    """
    until = time.monotonic() + seconds
    with Path(path).open("a") as file:
        while not (ours := _taken(file)) and time.monotonic() < until:
            time.sleep(PAUSE)
        try:
            yield ours
        finally:
            with suppress(OSError):  # to close it is not enough: a process forked meanwhile holds the lock too
                fcntl.flock(file, fcntl.LOCK_UN)


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
