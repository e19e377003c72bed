"""Shards behind URLs: fetched through fsspec into a local cache, whole or not at all, when they are first needed."""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import glob
from os.path import isfile
from pathlib import Path
from typing import Any

import fsspec

from ts_lightning.data.file_lock import locked

PROTOCOLS = ("file", "memory", "http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
CACHE_VARIABLE, LIMIT_VARIABLE = "TS_LIGHTNING_CACHE", "TS_LIGHTNING_CACHE_BYTES"
CACHE_BYTES = 200 << 30  # of tars that the cache keeps where the variable does not say
FETCHERS = 2  # threads of a rank that fetch ahead
PAUSES = (1.0, 5.0, 20.0)  # seconds before a shard that did not come is asked for again
VERSIONS = (  # by which the sources' libraries tell a changed file
    *("ETag", "etag", "mtime", "LastModified", "created"),
    *("Last-Modified", "last_modified", "Content-MD5", "blob_id"),
)


def is_url(pattern: str) -> bool:
    """Whether a shard pattern is no local path. `pipe:` runs a shell elsewhere; it is refused, not taken for a path."""
    return "://" in pattern or "::" in pattern or pattern.startswith("pipe:")


def fetch(pattern: str) -> list[str]:
    """Places in the cache of the shards of a URL (globs allowed), in sorted order; [] when there are none.

    A tar with its index NAME.tar.idx beside it at the source comes later, by `provide`; here only its index does. One
    without is fetched whole. A `file://` URL is a path: nothing is copied. The cache is $TS_LIGHTNING_CACHE
    (~/.cache/ts_lightning if unset). A copy is fetched again when the size or the version at the source changed.
    ValueError, one line, for other protocols and for what can't be read.
    """
    protocol = pattern.split("://")[0]
    if protocol not in PROTOCOLS or "::" in pattern:
        seen = f"{without_secrets(pattern)}: seen {pattern.split(':')[0]!r}"
        raise ValueError(f"{seen}, expected one of {', '.join(PROTOCOLS)} or a path")
    if protocol == "file":
        path = pattern.removeprefix("file://")
        return [name for name in (sorted(glob(path)) if any(c in path for c in "*?[") else [path]) if isfile(name)]
    try:
        files, path = fsspec.core.url_to_fs(pattern)
        names = sorted(files.glob(path)) if any(c in path for c in "*?[") else [path]
        return [_place(files, str(name)) for name in names]
    except Exception as error:  # every protocol's library raises its own
        raise ValueError(_unreadable(pattern, error)) from None


def without_secrets(text: str) -> str:
    """The text with its URLs without user, password and query (a signature), as logs, cards and file names have it."""
    text = re.sub(r"(?<=://)(?:[^/?\s:@]*:[^?\s]*@|[^/?\s]*@)", "", text)  # a key of S3 may hold a slash
    text = re.sub(r"(?<=://)[^/?\s:@]*:(?!\d{1,5}/)[^?\s]*\?\S*@", "", text)  # behind a port comes a query
    # elsewhere than in http a question mark may be a pattern's
    address = r"(https?://[^?\s'\"]*(?=\?)|\w+://[^\s'\"]*?(?=\?[\w.~%-]+=))"
    return re.sub(rf"{address}\?[^\s'\")]*[^\s'\"),:]", r"\1", text)


def is_remote(path: str) -> bool:
    """Whether a path is a place in the cache that `provide` can fill."""
    return Path(path).with_name("source.json").is_file()


def provide(path: str, sha256: str | None = None, mtime_ns: int | None = None) -> None:
    """Fetch the tar of a place in the cache unless it is there, and make room for it: the least recently used go.

    Processes of a machine wait for one another. OSError, which stops a run, when it does not come after several tries,
    or when other bytes come than its index says (None: any): all of its records are missing, not a bad one.
    """
    note = Path(path).with_name("source.json")
    with locked(f"{path}.lock"):
        if not os.path.isfile(path):
            source = json.loads(note.read_text())
            url, size = source["name"], source["size"]
            _make_room(size or 0)
            digest = _tried(url, path, size)
            if sha256 not in (None, digest):
                Path(path).unlink()
                seen = f"seen sha256 {digest[:12]}, expected {sha256[:12]} as in the index beside it"
                raise OSError(f"{without_secrets(url)}: {seen}")
            if mtime_ns is not None:
                os.utime(path, ns=(mtime_ns, mtime_ns))  # as its index says
        os.utime(note)


class Ahead:
    """Fetches shards before they are read, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._asked: set[str] = set()

    def want(self, shards: Iterable[Any]) -> None:
        """Begin to fetch those (`ShardIndex`es) that are not there; whoever reads one says what goes wrong with it."""
        for shard in shards:
            if shard.path not in self._asked and is_remote(shard.path):
                self._asked.add(shard.path)
                self._pool.submit(self._fetch, shard)

    def _fetch(self, shard: Any) -> None:
        with suppress(ValueError, OSError):
            provide(shard.path, shard.sha256, shard.mtime_ns)
        self._asked.discard(shard.path)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _root() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/ts_lightning")


def _place(files: Any, name: str) -> str:
    info = files.info(name)
    version = next((str(info[key]) for key in VERSIONS if key in info), "")
    now: dict[str, Any] = {"name": files.unstrip_protocol(name), "size": info.get("size"), "version": version}
    folder = _root() / hashlib.sha256(now["name"].encode()).hexdigest()[:16]
    path, query = _parted(name)
    target, note = folder / f"{os.path.basename(path).removesuffix('.tar') or 'shard'}.tar", folder / "source.json"
    beside = Path(f"{target}.idx")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(f"{target}.lock"):
        if (target.is_file() or beside.is_file()) and note.is_file() and note.read_text() == json.dumps(now):
            return str(target)
        for old in (note, target, beside):
            old.unlink(missing_ok=True)
        with suppress(Exception):  # whatever a library says to a file that is not there
            _download(files, f"{path}.idx{query}", str(beside), None)
        if not beside.is_file():
            _download(files, name, str(target), now["size"])
        note.write_text(json.dumps(now))
    return str(target)


def _parted(name: str) -> tuple[str, str]:
    """The path of a name, and the query of an http address, which belongs to no file name."""
    path, mark, query = name.partition("?") if name.startswith(("http://", "https://")) else (name, "", "")
    return path, mark + query


def _tried(url: str, target: str, size: int | None) -> str:
    """`_download`, several times where it may yet come; OSError, one line."""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            files, name = fsspec.core.url_to_fs(url)
            return _download(files, name, target, size)
        except Exception as error:  # every protocol's library raises its own
            reason = _unreadable(url, error)
            if isinstance(error, FileNotFoundError | PermissionError):
                break
    raise OSError(reason)


def _download(files: Any, name: str, target: str, size: int | None) -> str:
    """The sha256 of what came; the file at `target` is whole or not there. OSError for another size (None: any)."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), suffix=".part")
    os.close(descriptor)
    try:
        files.get_file(name, temporary)
        came = os.path.getsize(temporary)
        if size not in (None, came):  # None: the server did not say
            raise OSError(f"{came} of {size} bytes came")
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(temporary, target)
        return digest
    finally:
        Path(temporary).unlink(missing_ok=True)


def _make_room(size: int) -> None:
    """Remove the tars that were not used for longest until `size` more bytes fit. Whoever has one open keeps it."""
    limit = int(os.environ.get(LIMIT_VARIABLE) or CACHE_BYTES)
    used = []
    for note in _root().glob("*/source.json"):
        for tar in note.parent.glob("*.tar"):
            with suppress(FileNotFoundError):
                used.append((note.stat().st_mtime_ns, tar.stat().st_size, tar))
    total = sum(held for _, held, _ in used)
    for _, held, tar in sorted(used):
        if total + size <= limit:
            return
        if Path(f"{tar}.idx").is_file():  # the others would have to be fetched before the next start
            tar.unlink(missing_ok=True)
            total -= held


def _unreadable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(f"{name}: seen no readable shard ({reason}), expected a .tar file")
