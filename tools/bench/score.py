"""Scoring: 10,000 answers on one core, memory up to 100,000, and COCO AP beside pycocotools on 5,000 images."""

import contextlib
import io
import time
from random import Random
from typing import Any

import psutil
import torch

from tools.bench.harness import report
from ts_lightning.metrics.caption_ap import AP_NAMES, coco_figures
from ts_lightning.metrics.record import Record, Truth
from ts_lightning.metrics.suites import score_suites

IMAGES, BOXES, CLASSES = 5_000, 40_000, 80


def main(rounds: int) -> int:
    """Print seconds, memory growth in MB and the ratio of times; correct when the twelve figures agree to 1e-12."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    score_suites(answers(10_000))
    seconds = time.perf_counter() - began
    before = psutil.Process().memory_info().rss
    peak = max(_rss_after(start) for start in range(10_000, 100_000, 10_000))
    annotations, results, ids = detections()
    ours: list[float] = []
    theirs: list[float] = []
    figures, expected = {}, {}
    for _ in range(max(1, rounds // 2)):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            figures = coco_figures(annotations, results, ids)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            expected = pycocotools_figures(annotations, results, ids)
        theirs.append(time.perf_counter() - began)
    error = max(abs(figures[name] - expected[name]) for name in AP_NAMES)
    return report(
        "score",
        error <= 1e-12,
        ratios={"pycocotools": round(sorted(a / b for a, b in zip(ours, theirs, strict=True))[len(ours) // 2], 3)},
        floor_ratio=None,
        seconds_10k=round(seconds, 2),
        growth_mb=round(max(0, peak - before) / 2**20, 1),
        max_error=error,
    )


def _rss_after(start: int) -> int:
    score_suites(answers(10_000, start))
    return psutil.Process().memory_info().rss


def answers(number: int, start: int = 0) -> list[Record]:
    """Records of a box suite, their texts still to be read."""
    random, made = Random(start), []
    for i in range(start, start + number):
        x, y = random.uniform(0, 0.5), random.uniform(0, 0.5)
        truth = Truth(box=(x, y, x + 0.3, y + 0.4))
        near = [min(1.0, max(0.0, v + random.gauss(0, 0.03))) for v in (x, y, x + 0.3, y + 0.4)]
        text = f"[[{','.join(str(round(100 * v)) for v in near)}]]"
        made.append(Record("refcoco_val", str(i), text, truth, sizes=((640, 480),), protocol="rec"))
    return made


def detections() -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """COCO annotations and results: `BOXES` true boxes on `IMAGES` images, as many detections near them."""
    random = Random(0)
    images = [{"id": i, "width": 640, "height": 480} for i in range(1, IMAGES + 1)]
    notes, results = [], []
    for i in range(1, BOXES + 1):
        image, category = random.randint(1, IMAGES), random.randint(1, CLASSES)
        x, y, w, h = random.uniform(0, 500), random.uniform(0, 350), random.uniform(5, 200), random.uniform(5, 200)
        common = {"image_id": image, "category_id": category}
        notes.append({**common, "id": i, "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(random.random() < 0.01)})
        moved = [x + random.gauss(0, 4), y + random.gauss(0, 4), w * random.uniform(0.8, 1.2), h]
        results.append({**common, "bbox": moved, "score": random.random()})
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    annotations = {"images": images, "annotations": notes, "categories": categories}
    return annotations, results, [image["id"] for image in images]


def pycocotools_figures(annotations: Any, results: Any, ids: list[int]) -> dict[str, float]:
    """The twelve figures of the reference."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = annotations
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "bbox")
    evaluation.params.imgIds = ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(AP_NAMES, map(float, evaluation.stats), strict=True))
