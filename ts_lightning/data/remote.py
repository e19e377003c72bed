"""Shards behind URLs: fetched once through fsspec into a local cache, whole or not at all."""

import hashlib
import json
import os
import tempfile
from glob import glob
from os.path import isfile
from pathlib import Path
from typing import Any

import fsspec

PROTOCOLS = ("file", "memory", "http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
CACHE_VARIABLE = "TS_LIGHTNING_CACHE"


def is_url(pattern: str) -> bool:
    """Whether a shard pattern is no local path. `pipe:` runs a shell elsewhere; it is refused, not taken for a path."""
    return "://" in pattern or "::" in pattern or pattern.startswith("pipe:")


def fetch(pattern: str) -> list[str]:
    """Local copies of the shards of a URL (globs allowed), in sorted order; [] when there are none.

    A `file://` URL is a path: nothing is copied.

    The cache is $TS_LIGHTNING_CACHE (~/.cache/ts_lightning if unset). A copy is fetched again when the size or the
    version at the source changed. ValueError, one line, for other protocols and for what can't be read.
    """
    protocol = pattern.split("://")[0]
    if protocol not in PROTOCOLS or "::" in pattern:
        raise ValueError(f"{pattern}: seen {pattern.split(':')[0]!r}, expected one of {', '.join(PROTOCOLS)} or a path")
    if protocol == "file":
        path = pattern.removeprefix("file://")
        return [name for name in (sorted(glob(path)) if any(c in path for c in "*?[") else [path]) if isfile(name)]
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        names = sorted(files.glob(path)) if any(c in path for c in "*?[") else [path]
        return [_copy(files, str(name)) for name in names]
    except Exception as error:  # every protocol's library raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{pattern}: seen no readable shard ({reason}), expected a .tar file") from None


def _copy(files: Any, name: str) -> str:
    info = files.info(name)
    version = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), "")
    now: dict[str, Any] = {"name": files.unstrip_protocol(name), "size": info.get("size"), "version": version}
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/ts_lightning")
    folder = root / hashlib.sha256(now["name"].encode()).hexdigest()[:16]
    target, note = folder / os.path.basename(name), folder / "source.json"
    if target.is_file() and note.is_file() and note.read_text() == json.dumps(now):
        return str(target)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(descriptor)
    try:
        files.get_file(name, temporary)
        size = os.path.getsize(temporary)
        if now["size"] not in (None, size):  # None: the server did not say
            raise OSError(f"{size} of {now['size']} bytes came")
        note.unlink(missing_ok=True)
        os.replace(temporary, target)
        note.write_text(json.dumps(now))
    finally:
        Path(temporary).unlink(missing_ok=True)
    return str(target)
