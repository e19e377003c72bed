#!/usr/bin/env python
"""Rate and memory of offline SCOUT generation and writing, with one process for each of two shards.

python -m tools.experiments.measure_generation [--pictures 4000] [--out DIR]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ts_lightning.data import index_shards
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene

GENERATE = (sys.executable, "-m", "ts_lightning", "data", "generate", "scout")


def detection(seed: int, known: dict[tuple[int, int], bytes]) -> Sample:
    """A toy scene as an annotated picture; one JPEG serves all of a size, since only its bytes cost."""
    scene = sample_scene(seed)
    if (size := (scene.width, scene.height)) not in known:
        known[size] = jpeg(render(scene))
    regions = []
    for thing in scene.things:
        x1, y1, x2, y2 = thing.pixels
        box = (x1 / scene.width, y1 / scene.height, x2 / scene.width, y2 / scene.height)
        regions.append(SampleRegion(phrase=thing.shape, category=thing.shape, box=box))
    text = ", ".join(f"{region.phrase} {{region:{i}}}" for i, region in enumerate(regions)) + "."
    return Sample(
        id=f"toy/{seed}",
        key=f"p{seed:07d}",
        task="grounding",
        subtask="detection",
        images=[SampleImage(f"{seed}.jpg", scene.width, scene.height)],
        turns=[Turn("user", "<image>\nList all objects with boxes."), Turn("assistant", text)],
        regions=regions,
        answer=Answer(regions=list(range(len(regions)))),
        meta={"image_id": seed},
        image_bytes=[known[size]],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--out", type=Path, help="folder for the shards (a temporary one when missing)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, known = args.out or Path(scratch), dict[tuple[int, int], bytes]()
        write_shards((detection(i, known) for i in range(args.pictures)), folder / "in", "in", -(-args.pictures // 2))
        began = time.perf_counter()
        shards = str(folder / "in/*.tar")
        line = [*GENERATE, shards, "--out", str(folder / "out"), "--share"]
        runs = [subprocess.Popen([*line, f"{i}/2"], stdout=subprocess.DEVNULL) for i in (0, 1)]
        if any([run.wait() for run in runs]):
            return 1
        seconds = time.perf_counter() - began
        samples = index_shards(str(folder / "out/*.tar")).num_samples
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures = {"samples": samples, "seconds": round(seconds, 1), "per_second": round(samples / seconds, 1)}
    print(json.dumps(figures | {"image_bytes": max(map(len, known.values())), "peak_mb_of_a_process": round(peak, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
