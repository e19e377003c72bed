"""What converting costs: CPU seconds for rows that each have a picture of their own, from the files to indexed shards.

    python -m tools.bench convert [--records 10000]

The pictures are JPEGs of 640 x 480 in about 60 kB, each with other bytes. Correct: every record is there, with the
bytes of its file.
"""

import json
import resource
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tools.bench.harness import report
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.pipelines.convert import Conversion, convert


def main(rounds: int, records: int = 10_000) -> int:
    """CPU seconds of `data convert vlm-r1`, user and system, for `records` rows; the least of `rounds`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "in", records)
        told = Conversion(out=folder / "out", path=str(folder / "in/rows.json"), images=folder / "in/images")
        seconds = []
        for _ in range(rounds):
            before, wall = _cpu(), time.perf_counter()
            made = convert("vlm-r1", told, {})
            seconds.append((_cpu() - before, time.perf_counter() - wall))
        reader = ShardReader(index_shards(str(folder / "out/*.tar")))
        same = all(
            sample.image_bytes == [(folder / "in/images" / sample.images[0].name).read_bytes()]
            for sample in (reader.read(i) for i in range(0, records, max(1, records // 200)))
        )
        correct = same and made.manifest.num_samples == records and not made.dropped
        best, wall = min(seconds)
        size = (folder / "in/images/0.jpg").stat().st_size
    return report(
        "convert",
        correct,
        records=records,
        picture_bytes=size,
        cpu_seconds=[round(cpu, 2) for cpu, _ in seconds],
        cpu_seconds_least=round(best, 2),
        wall_seconds=round(wall, 2),
    )


def _write(folder: Path, records: int) -> None:
    """A JPEG of about 60 kB under `records` names, each with a comment of its own behind the start marker."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    noise = random.normal(0, 9, (480, 640, 3))
    pixels = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC)) + noise
    stream = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=67)
    picture = stream.getvalue()
    rows = []
    for number in range(records):
        comment = f"{number:012d}".encode()
        data = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]
        (folder / "images" / f"{number}.jpg").write_bytes(data)
        box = [10 + number % 100, 20, 200 + number % 300, 300]
        rows.append({"image": f"{number}.jpg", "problem": f"Where is thing {number}?", "solution": box})
    (folder / "rows.json").write_text(json.dumps(rows))


def _cpu() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
