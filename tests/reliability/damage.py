"""Item 9: shards that are not what they were, and tars that never were right. All of it is found, by name."""

import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.reliability import tiny_run
from ts_lightning.data import index_shards
from ts_lightning.data.manifest import Manifest, check_manifest
from ts_lightning.data.tar import scan_tar
from ts_lightning.data.write import write_shards

Members = list[tuple[str, bytes]]


def damage(folder: Path, quick: bool) -> dict[str, Any]:
    """The figures; AssertionError with the first damage that was not found, or named wrongly."""
    return {
        **changed_bytes(folder / "bytes", 41 if quick else 1),
        **cuts(folder / "cuts", 100 if quick else 1000),
        "replaced_shards": replaced(folder / "replaced"),
        "keys_twice_or_apart": keys(folder / "keys"),
    }


def changed_bytes(folder: Path, step: int) -> dict[str, int]:
    """Every `step`-th byte of a shard changed, against its manifest."""
    path = write_shards((tiny_run.sample(i) for i in range(4)), folder, "d", 4)[0]
    whole, manifest = path.read_bytes(), index_shards(str(path))
    check = partial(check_manifest, manifest, stored_manifest(folder, manifest))
    places = range(0, len(whole), step)
    found = 0
    with path.open("r+b") as file:
        for place in places:
            os.pwrite(file.fileno(), bytes([whole[place] ^ 1]), place)
            found += names(str(path), check)
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert found == len(places), (found, len(places))
    return {"bytes_changed": len(places), "found": found}


def cuts(folder: Path, count: int) -> dict[str, int]:
    """A tar cut at all boundaries of its members and at random offsets before its end, without a manifest."""
    whole_path = write_shards((tiny_run.sample(i) for i in range(4)), folder, "d", 4)[0]
    whole, path = whole_path.read_bytes(), folder / "cut.tar"
    with tarfile.open(whole_path) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512 + 1024
    boundaries = {m.offset for m in members} | {m.offset_data for m in members} | {end - 1024, end - 512}
    rng = random.Random(0)
    places = sorted(boundaries | set(rng.sample(range(end), count)))
    found = 0
    for cut in places:
        path.write_bytes(whole[:cut])
        found += names(str(path), partial(scan_tar, str(path)))
    assert found == len(places), (found, len(places))
    return {"cuts": len(places), "cuts_found": found}


def replaced(folder: Path) -> int:
    """Each of three shards: others' contents, gone, exchanged, under another name; the number of ways, all found."""
    paths = write_shards((tiny_run.sample(i) for i in range(9)), folder, "d", 3)
    other = write_shards((tiny_run.sample(i + 20) for i in range(3)), folder / "other", "d", 3)[0].read_bytes()
    check, found = _checker(folder, paths), 0
    for number, path in enumerate(paths):
        whole, stat = path.read_bytes(), path.stat()
        neighbour = paths[(number + 1) % 3]
        path.write_bytes(other + b"\0" * max(0, len(whole) - len(other)))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and rsync leave it
        found += _expect(str(path), check)
        path.write_bytes(neighbour.read_bytes())
        found += _expect(str(path), check)
        path.unlink()
        found += _expect(path.name, check)
        shutil.copy(neighbour, folder / "d-000009.tar")
        found += _expect("d-000009.tar", check)
        (folder / "d-000009.tar").unlink()
        path.write_bytes(whole)
    check()
    return found


def keys(folder: Path) -> int:
    """Tars of four records with a member twice, a record twice, a member away from its record: all refused by key."""
    path = write_shards((tiny_run.sample(i) for i in range(4)), folder, "d", 4)[0]
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    found = 0
    for key, wrong in _wrong_orders(members):
        with tarfile.open(path, "w") as tar:
            for name, data in wrong:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found += _expect(f"{path}:{key}", partial(scan_tar, str(path)))
    return found


def _wrong_orders(members: Members) -> Iterator[tuple[str, Members]]:
    """(key, members) of every way to repeat one member or one record, or to move one member out of its record."""
    key = [name.split(".")[0] for name, _ in members]
    for i, member in enumerate(members):
        yield from (
            (key[i], [*members[:j], member, *members[j:]]) for j in range(len(members) + 1) if _together(key, j)
        )
        rest, others = members[:i] + members[i + 1 :], key[:i] + key[i + 1 :]
        ends = [j for j in range(len(members)) if _together(others, j) and key[i] not in others[max(0, j - 1) : j + 1]]
        yield from ((key[i], [*rest[:j], member, *rest[j:]]) for j in ends)
    for own in dict.fromkeys(key):
        record = [member for member, name in zip(members, key, strict=True) if name == own]
        yield from ((own, [*members[:j], *record, *members[j:]]) for j in range(len(members) + 1) if _together(key, j))


def _together(key: list[str], place: int) -> bool:
    """Whether something put at `place` cuts no record in two."""
    return place in (0, len(key)) or key[place - 1] != key[place]


def _checker(folder: Path, paths: list[Path]) -> Callable[[], None]:
    """The check of what lies in `folder` now against the manifest of `paths`; the index is the one made before."""
    manifest_file = stored_manifest(folder, index_shards(paths))
    return lambda: check_manifest(index_shards(f"{folder}/d-*.tar"), manifest_file)


def stored_manifest(folder: Path, manifest: Manifest) -> Path:
    """The manifest's file, as ts-lightning data index --out writes it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest.summary()))
    return path


def names(name: str, check: Callable[[], object]) -> bool:
    """Whether the check refuses, with `name` in its one line."""
    try:
        check()
    except ValueError as error:
        return name in str(error) and "\n" not in str(error)
    return False


def _expect(name: str, check: Callable[[], object]) -> bool:
    assert names(name, check), f"{name}: not found"
    return True
