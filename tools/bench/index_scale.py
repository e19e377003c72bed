"""What an index costs: building it, a start, a look-up in a loader process, and the order of a thousand million rows.

python tools/bench/index_scale.py --samples 1000000 --shards 500
"""

import argparse
import gc
import io
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ts_lightning.data import index_shards
from ts_lightning.data.order import EpochOrder
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn


def write(folder: Path, samples: int, shards: int) -> None:
    """Tiny samples, one a record: a picture of 600 bytes and as much JSON."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 91, 50)).save(picture, "JPEG")
    turns = [Turn("user", "<image>Where is it?"), Turn("assistant", "{region:0}")]
    images, regions = [SampleImage("8-0.jpg", 8, 6)], [SampleRegion(phrase="it", box=(0.125, 0.25, 0.5, 1.0))]
    record = Sample(id="NAME", task="grounding", images=images, turns=turns, regions=regions).to_json().decode()
    for shard in range(shards):
        with open(folder / f"s-{shard:06d}.tar", "wb") as file:
            for number in range(shard, samples, shards):
                name = f"k{number:09d}"
                file.write(_member(f"{name}.jpg", picture.getvalue()))
                file.write(_member(f"{name}.json", record.replace("NAME", name).encode()))
            file.write(bytes(1024))


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def _cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in both)


def _megabytes(kind: str) -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def _forked(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a forked process measures."""
    read, write_end = os.pipe()
    if not os.fork():
        gc.collect()  # it copies the parent's pages once, whatever the index is
        os.write(write_end, json.dumps(measure()).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read) as file:
        found = json.load(file)
    os.wait()
    return found


def measure(pattern: str, samples: int) -> dict[str, float]:
    """The figures; the shards have no index yet."""
    began = _cpu()
    index_shards(pattern)
    figures = {"build_us_of_a_core": (_cpu() - began) / samples * 1e6}
    os.sync()  # pages of a file that is not on the disk yet would count as a process's own, as soon as it maps them

    def start() -> dict[str, float]:
        memory, began = _megabytes("Rss"), time.perf_counter()
        manifest = index_shards(pattern)
        seconds = time.perf_counter() - began
        EpochOrder(manifest.shard_sizes, 0, 0, 16384)[:64]
        return {"load_s": seconds, "start_mb_a_rank": _megabytes("Rss") - memory}

    figures |= _forked(start)
    reader, draw = ShardReader(index_shards(pattern)), random.Random(0)

    def look_up() -> dict[str, float]:
        memory = _megabytes("Private_Dirty")
        for _ in range(50_000):
            shard, q = reader.manifest.locate(draw.randrange(samples))
            shard.question(q)
        for _ in range(2000):
            reader.read(draw.randrange(samples))
        return {"worker_private_mb": _megabytes("Private_Dirty") - memory}

    figures |= _forked(look_up)
    began = time.perf_counter()
    EpochOrder(np.full(100_000, 10_000), 0, 0, 16384)[500_000_000:500_000_064]
    return figures | {"batch_of_1e9_s": time.perf_counter() - began}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.samples, args.shards)
        figures = measure(f"{folder}/*.tar", args.samples)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
