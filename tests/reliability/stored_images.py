"""Item 10, pictures in shards: bytes that change after indexing, and boxes on pictures that EXIF turns."""

import io
import os
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tests.reliability import tiny_run
from tests.reliability.damage import names, stored_manifest
from ts_lightning.data import index_shards
from ts_lightning.data.images import inspect_image
from ts_lightning.data.manifest import check_manifest
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.models.pixels import load_pixels

SIZE, MARK = (64, 48), (8, 16, 24, 40)  # (width, height), and a rectangle in displayed pixels
_STORED = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes what the tag asks for


def both(folder: Path) -> dict[str, Any]:
    """The figures of both."""
    return changed_after_indexing(folder / "changed") | boxes_on_turned_pictures(folder / "exif")


def changed_after_indexing(folder: Path, count: int = 300) -> dict[str, int]:
    """1 to 50 random bytes of a picture in an indexed shard changed; AssertionError where anything was not found.

    `in_a_run`: the index is in memory. `next_run`: the index file lies beside, size and time of the tar as before.
    `manifest`: the bytes are checked at the start.
    """
    path = write_shards((tiny_run.sample(i) for i in range(20)), folder, "d", 20)[0]
    manifest = index_shards(str(path))
    shard, stored, stat, rng = manifest.shards[0], stored_manifest(folder, manifest), path.stat(), random.Random(0)
    found = {"in_a_run": 0, "next_run": 0, "manifest": 0}
    whole = path.read_bytes()
    for number in range(count):
        r = number % 20
        ((offset, size),) = [(offset, size) for name, offset, size, _ in shard.record(r) if name != "json"]
        data = bytearray(whole)
        for place in rng.sample(range(offset, offset + size), 1 + number % 50):
            data[place] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        where = f"{path}:{shard.key(r)}: "
        found["in_a_run"] += names(where, lambda r=r: ShardReader(manifest).read(r))  # type: ignore[misc]
        found["next_run"] += names(where, lambda r=r: ShardReader(index_shards(str(path))).read(r))  # type: ignore[misc]
        found["manifest"] += names(str(path), lambda: check_manifest(manifest, stored))
    assert set(found.values()) == {count}, found
    return {"changed_after_indexing": count, "silent": 0}


def turned(tag: int, kind: str) -> bytes:
    """A black picture with a white rectangle at `MARK`, as displayed, stored under an EXIF orientation."""
    shown, exif, data = Image.new("RGB", SIZE), Image.Exif(), io.BytesIO()
    shown.paste((255, 255, 255), MARK)
    undo = _STORED[tag]
    exif[0x0112] = tag
    stored = shown if undo is None else shown.transpose(Image.Transpose(undo))
    stored.save(data, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}))
    return data.getvalue()


def boxes_on_turned_pictures(folder: Path) -> dict[str, Any]:
    """EXIF 1 to 8 in three formats, from annotation to pixels: the box that is read against the white that is seen."""
    pictures = {f"{kind}-{tag}": turned(tag, kind) for kind in ("JPEG", "PNG", "WEBP") for tag in range(1, 9)}
    paths = write_shards((_sample(name, data) for name, data in pictures.items()), folder, "exif")
    reader = ShardReader(index_shards(paths))
    worst = 1.0
    for i in range(len(pictures)):
        sample = reader.read(i)
        width, height = sample.images[0].width, sample.images[0].height
        worst = min(worst, iou(sample.regions[0].box or (), _white(sample.image_bytes[0], width, height)))
    assert worst == 1.0, worst
    return {"exif_pictures": len(pictures), "worst_iou": worst}


def _sample(key: str, data: bytes) -> Sample:
    """As a converter makes it: the annotation is in pixels of the displayed picture."""
    extension, *size = inspect_image(data)
    image = SampleImage(f"{key}.{extension}", *size)
    box: Box = (MARK[0] / image.width, MARK[1] / image.height, MARK[2] / image.width, MARK[3] / image.height)
    turns = [Turn("user", "<image>\nWhere?"), Turn("assistant", "{region:0}")]
    return Sample(
        id=key, key=key, task="grounding", images=[image], turns=turns, regions=[SampleRegion(box=box)],
        image_bytes=[data],
    )  # fmt: skip


def _white(data: bytes, width: int, height: int) -> Box:
    """The rectangle of bright pixels in what the model gets, in [0, 1]."""
    rows_columns = (load_pixels(data, (height, width)).float().mean(0) > 127).nonzero()
    (y1, x1), (y2, x2) = rows_columns.amin(0).tolist(), (rows_columns.amax(0) + 1).tolist()
    return x1 / width, y1 / height, x2 / width, y2 / height
