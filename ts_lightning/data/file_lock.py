"""The kernel's lock on a file, where its file system has locks."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # NFS without its lock daemon, some clusters' and FUSE


@contextmanager
def locked(path: str | Path, seconds: float = -1) -> Iterator[None]:
    """Of several processes one at a time; all of them on a file system without locks.

    filelock's Timeout after `seconds` of waiting (-1: however long it takes).
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
