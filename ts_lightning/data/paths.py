"""From what a user writes for shards to files: a path, {000..010}, a glob, a URL, or a list of them."""

import glob
import math
import os
import re
from collections.abc import Iterable, Sequence
from itertools import product

from ts_lightning.data.remote import fetch, is_url, without_secrets

MAX_PATTERNS = 1_000_000  # shards that one {000..999} may stand for
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def expand(paths: Paths) -> list[str]:
    """Files of `paths`, {000..010} and globs expanded; ValueError for a pattern that matches none, or a file twice."""
    patterns = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not patterns:
        raise ValueError("shards: seen an empty list, expected at least one path or pattern")
    files: list[str] = []
    for pattern in (one for path in patterns for one in _braces(os.fspath(path))):
        if is_url(pattern):
            files += (found := fetch(pattern))
            if not found:
                raise ValueError(f"{without_secrets(pattern)}: seen no such shard, expected at least one .tar file")
            continue
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [f for f in found if os.path.isfile(f)]
        if not found:
            seen = "a folder, pipe or device" if os.path.exists(pattern) else "no such shard"
            raise ValueError(f"{pattern}: seen {seen}, expected at least one .tar file")
        files += found
    if twice := sorted({f for f in files if files.count(f) > 1}) if len(set(files)) < len(files) else []:
        raise ValueError(f"{twice[0]}: seen twice in the list of shards, expected once")
    return files


def _braces(pattern: str) -> list[str]:
    """Webdataset's notation: x-{000..002}.tar stands for three shards, each of which has to be there."""
    if "{" not in pattern or os.path.exists(pattern):
        return [pattern]
    choices: list[Sequence[str]] = []
    for number, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):  # every second part stood in braces
        ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", part) if number % 2 else None
        if ends:
            first, last = int(ends[1]), int(ends[2])
            width = max(map(len, ends.groups())) if any(end[0] == "0" for end in ends.groups()) else 0
            if abs(last - first) >= MAX_PATTERNS:
                raise ValueError(f"{pattern}: seen more than {MAX_PATTERNS} shards, expected fewer")
            step = 1 if last >= first else -1
            choices.append([f"{value:0{width}d}" for value in range(first, last + step, step)])
        else:
            choices.append(part.split(",") if number % 2 and "," in part else [f"{{{part}}}" if number % 2 else part])
    if math.prod(map(len, choices)) > MAX_PATTERNS:
        raise ValueError(f"{pattern}: seen more than {MAX_PATTERNS} shards, expected fewer")
    return ["".join(parts) for parts in product(*choices)]
