"""Readings of boxes and their scores against plain re-statements of the official scorers, on disturbed real truths."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.readings.boxes import (
    lmms_eval_box,
    lmms_eval_centre,
    migician_box,
    vlm_r1_box,
    vlm_r1_iou,
    vlmevalkit_box,
)
from ts_lightning.metrics.record import Record, Truth
from ts_lightning.pipelines.converters import refcoco

REAL = Path(__file__).parents[4] / "shared/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no annotation files in {REAL}")
WIDTH, HEIGHT = 640, 480


def disturbed(box: list[float], random: Random) -> str:
    """An answer about a true box in one of the ways that models have: forms, grids, reversed, several, none, cut."""
    x1, y1, x2, y2 = (min(1.0, max(0.0, v + random.gauss(0, 0.05))) for v in box)
    if random.random() < 0.1:
        x1, x2 = x2, x1
    if random.random() < 0.1:
        y1, y2 = y2, y1
    shares = f"{x1:.3f}, {y1:.3f}, {x2:.3f}, {y2:.3f}"
    thousandths = f"{1000 * x1:.0f}, {1000 * y1:.0f}, {1000 * x2:.0f}, {1000 * y2:.0f}"
    pixels = f"{WIDTH * x1:.0f}, {HEIGHT * y1:.0f}, {WIDTH * x2:.0f}, {HEIGHT * y2:.0f}"
    forms = [
        f"[{shares}]",
        f"It is at [{shares}].",
        f"[[{shares}]]",
        f"[ {shares} ]",
        f"({shares})",
        f"[{shares.replace(',', '')}]",
        f"[{shares}] or [0.1, 0.1, 0.9, 0.9]",
        f"[{thousandths}]",
        f"<answer>{{'bbox': [{pixels}]}}</answer>",
        f'<think>{{[1, 2, 3, 4]}}</think><answer>[{{"bbox_2d": [{pixels}], "label": "x"}}]</answer>',
        f'<answer>[{{"bbox_2d": [1, 2, 3, 4]}}, {{"bbox_2d": [{pixels}]}}]</answer> <answer>{{[5, 5, 9, 9]}}</answer>',
        f"<answer>[{pixels}]</answer>",
        f"<answer>{{'bbox': [{pixels}]",
        "[2000, 10, 3000, 400]",
        "I can't see it.",
        "There are 2 of 3.",
        "[1e2, 5e1, 3E2, +.5e3]",
        "",
    ]
    return random.choice(forms)


def plain_iou(a: list[float], b: list[float]) -> float:
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union else 0.0


def official_lmms_eval(text: str) -> list[float]:
    number = r"(-?\d+(?:\.\d+)?)"
    match = re.search(rf"\[\s*{number},\s*{number},\s*{number},\s*{number}\s*\]", text)
    return [float(n) for n in match.groups()] if match else [0, 0, 0, 0]


def official_vlmevalkit(text: str) -> list[float] | None:
    """In pixels of the picture."""
    number, between = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", r"(?:\s*,\s*|\s+)"
    match = re.search(rf"\[\s*({number}){between}({number}){between}({number}){between}({number})\s*\]", text)
    found = list(match.groups()) if match else re.findall(number, text)[:4]
    if len(found) < 4:
        return None
    box = [float(n) for n in found]
    most = max(abs(n) for n in box)
    if most <= 1.5:
        box = [n * side for n, side in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
    elif most <= 1000:
        box = [n / 1000.0 * side for n, side in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
    box = [min(max(n, 0), side) for n, side in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
    if box[2] < box[0]:
        box[0], box[2] = box[2], box[0]
    if box[3] < box[1]:
        box[1], box[3] = box[3], box[1]
    return box


def official_vlm_r1(text: str) -> list[int]:
    answer = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if answer:
        box = re.search(r"\{.*\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]\s*.*\}", answer.group(1).strip(), re.DOTALL)
        if box:
            return [int(n) for n in box.groups()]
    return [0, 0, 0, 0]


def official_vlm_r1_iou(a: list[float], b: list[float]) -> float:
    left, top = max(a[0], b[0]), max(a[1], b[1])
    right, bottom = min(a[2] - 1, b[2] - 1), min(a[3] - 1, b[3] - 1)
    inter = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def figures_of(
    name: str, asked: Sequence[tuple[Any, str]], reading: str | None = None, **fields: Any
) -> dict[str, Any]:
    """The protocol's figures of answers to questions whose truth is one box, or the boxes of a phrase."""
    protocol = make_protocol(name, reading)
    records = []
    for number, (true, text) in enumerate(asked):
        boxes = tuple(map(tuple, true)) if isinstance(true[0], list) else (tuple(true),)
        truth = Truth(box=boxes[0], boxes=boxes)
        records.append(Record("s", str(number), text, truth, sizes=((WIDTH, HEIGHT),), **fields))
    protocol.update(records)
    return protocol.compute()


@pytest.fixture(scope="module")
def asked() -> list[tuple[list[float], str]]:
    """RefCOCO testA: the true box in shares, a disturbed answer."""
    random = Random(0)
    samples = refcoco.read(REAL / "refcoco/unc_testA.pth")
    truths = [list(sample.regions[0].box or ()) for sample in samples]
    return [(truth, disturbed(truth, random)) for truth in truths]


@needs_real
def test_refcoco_as_lmms_eval_scores_it(asked: list[tuple[list[float], str]]) -> None:
    ious, centres = [], []
    for true, text in asked:
        box = official_lmms_eval(text)
        ious.append(plain_iou(true, box))
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        centres.append(true[0] <= x <= true[2] and true[1] <= y <= true[3])
    read = [lmms_eval_box(text) for _, text in asked]
    figures = figures_of("rec", asked, "lmms_eval")
    assert len(asked) == 5657
    assert figures["miou"] == pytest.approx(sum(ious) / 5657, abs=1e-9)
    for t in (1, 3, 5, 7, 9):
        assert figures[f"acc{10 * t}"] == pytest.approx(sum(iou >= t / 10 for iou in ious) / 5657, abs=1e-9)
    assert figures["centre"] == pytest.approx(sum(centres) / 5657, abs=1e-9)
    assert [lmms_eval_centre(box, true) for box, (true, _) in zip(read, asked, strict=True)] == centres
    assert 0.1 < figures["acc50"] < 0.9


@needs_real
def test_refcoco_as_vlmevalkit_scores_it(asked: list[tuple[list[float], str]]) -> None:
    ious = []
    for true, text in asked:
        box = official_vlmevalkit(text)
        truth = [n * side for n, side in zip(true, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
        ious.append(0.0 if box is None else plain_iou(box, truth))
    figures = figures_of("rec", asked, "vlmevalkit")
    assert figures["acc50"] == pytest.approx(sum(iou >= 0.5 for iou in ious) / 5657, abs=1e-9)
    assert figures["miou"] == pytest.approx(sum(ious) / 5657, abs=1e-9)
    assert 0.1 < figures["acc50"] < 0.9


@needs_real
def test_refcoco_as_vlm_r1_scores_it(asked: list[tuple[list[float], str]]) -> None:
    hits, ours = [], []
    for true, text in asked:
        truth = [n * side for n, side in zip(true, (WIDTH, HEIGHT, WIDTH, HEIGHT), strict=True)]
        box = official_vlm_r1(text)
        assert (vlm_r1_box(text) or (0, 0, 0, 0)) == tuple(box), text
        hits.append(official_vlm_r1_iou(box, truth) > 0.5)
        ours.append(vlm_r1_iou(vlm_r1_box(text), (truth[0], truth[1], truth[2], truth[3])) > 0.5)
    assert ours == hits
    figures = figures_of("rec", asked, "vlm_r1")
    assert figures["acc50"] == pytest.approx(sum(hits) / len(hits), abs=1e-9)
    assert 0.05 < sum(hits) / len(hits) < 0.9


NOTATIONS = [
    lambda b: "<|box_start|>({:.0f},{:.0f}),({:.0f},{:.0f})<|box_end|>".format(*(1000 * v for v in b)),
    lambda b: "It's in the second image. ({:.0f},{:.0f}), ({:.0f},{:.0f})".format(*(1000 * v for v in b)),
    lambda b: "[{:.3f}, {:.3f}, {:.3f}, {:.3f}]".format(*b),
    lambda b: "({:.3f},{:.3f}),({:.3f},{:.3f})".format(*b),
    lambda b: "({:.3f}, {:.3f}, {:.3f}, {:.3f})".format(*b),
    lambda b: "[{:.0f}, {:.0f}, {:.0f}, {:.0f}]".format(*(1000 * v for v in b)),
    lambda b: "<box>{:.0f} {:.0f} {:.0f} {:.0f}</box>".format(*(1000 * v for v in b)),
    lambda b: "[{:.0f}, {:.0f}, {:.0f}, {:.0f}] and (0.1, 0.2, 0.3, 0.4)".format(*(1000 * v for v in b)),
    lambda b: "({:.0f},{:.0f}),({:.0f},{:.0f}) and (1,1),(2,1)".format(*(1000 * v for v in b)),
    lambda b: "[1, {:.0f}, {:.0f}, {:.0f}]".format(*(1000 * v for v in b[1:])),
    lambda b: "I can't find it in image 2.",
]


def official_migician(text: str) -> list[float] | None:
    found: list[tuple[str, ...]] = []
    for pattern in (
        r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)",
        r"\[(\d+\.\d+),\s*(\d+\.\d+),\s*(\d+\.\d+),\s*(\d+\.\d+)\]",
        r"\((\d+\.\d+),(\d+\.\d+)\),\((\d+\.\d+),(\d+\.\d+)\)",
        r"\((\d+\.\d+),\s*(\d+\.\d+),\s*(\d+\.\d+),\s*(\d+\.\d+)\)",
        r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]",
        r"<box>(\d+)\s+(\d+)\s+(\d+)\s+(\d+)</box>",
    ):
        found = found or re.findall(pattern, text)
    if not found:
        return None
    first = [float(n) for n in found[0]]
    return [n / 1000 if n > 1 or (n == 1 and len(found) == 1) else n for n in first]


@needs_real
def test_mig_bench_in_all_notations_mixed() -> None:
    random, tasks = Random(1), {}
    for row in json.loads((REAL / "mig_bench/MIG_data.json").read_text()):
        moved = [min(0.999, max(0.0, v + random.gauss(0, 0.05))) for v in row["answer"]]
        tasks.setdefault(row["task"], []).append((row["answer"], random.choice(NOTATIONS)(moved)))
    means, ours = [], []
    for group in tasks.values():
        boxes = [official_migician(text) for _, text in group]
        hits = [b is not None and plain_iou(t, b) >= 0.5 for b, (t, _) in zip(boxes, group, strict=True)]
        means.append(sum(hits) / len(hits))
        read = [migician_box(text) for _, text in group]
        assert read == [None if box is None else tuple(box) for box in boxes]
        ours.append(figures_of("mig", group, "official", subtask="refer", codec="qwen2_vl", grid="1000")["acc50"])
    assert len(tasks) == 10
    assert sum(ours) / 10 == pytest.approx(sum(means) / 10, abs=1e-9)
    assert 0.2 < sum(means) / 10 < 0.9


def test_phrase_grounding_merged_and_any() -> None:
    """Flickr30k Entities' R@1 as MDETR has it: the first box against the box around all, or against the best."""
    random = Random(4)

    def box() -> list[float]:
        x, y = random.uniform(0, 0.5), random.uniform(0, 0.5)
        return [x, y, x + random.uniform(0.1, 0.5), y + random.uniform(0.1, 0.5)]

    truths = [[box() for _ in range(random.randint(1, 3))] for _ in range(3000)]
    near = [[min(max(v + random.gauss(0, 0.03), 0.0), 1.0) for v in random.choice(true)] for true in truths]
    near = [[round(v, 8) for v in one] for one in near]
    preds = [random.choice([[], [one], [one, box()], [box(), one]]) for one in near]
    merged = any_box = 0
    for pred, true in zip(preds, truths, strict=True):
        if pred:
            left, top, right, bottom = zip(*true, strict=True)
            around = [min(left), min(top), max(right), max(bottom)]
            merged += plain_iou(pred[0], around) >= 0.5
            any_box += max(plain_iou(pred[0], one) for one in true) >= 0.5
    codec = get_codec("shikra", CoordinateSpace("decimals:8", "original"))
    texts = [" or ".join(codec.format([tuple(box)]) for box in one) for one in preds]
    notation = {"codec": "shikra", "grid": "decimals:8", "frame": "original", "subtask": "phrase"}
    figures = figures_of("phrases", list(zip(truths, texts, strict=True)), **notation)
    assert figures["recall1_merged"] == pytest.approx(merged / 3000, abs=1e-9)
    assert figures["recall1_any"] == pytest.approx(any_box / 3000, abs=1e-9)
    assert 0.2 < merged < any_box < 2900


@pytest.mark.parametrize(
    ("text", "lmms", "vlmevalkit", "migician"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", (0.1, 0.2, 0.5, 0.6), (0.1, 0.2, 0.5, 0.6), (0.1, 0.2, 0.5, 0.6)),
        ("[0.5, 0.2, 0.1, 0.6]", (0.5, 0.2, 0.1, 0.6), (0.1, 0.2, 0.5, 0.6), (0.5, 0.2, 0.1, 0.6)),
        ("[100, 200, 500, 600]", (100, 200, 500, 600), (0.1, 0.2, 0.5, 0.6), (0.1, 0.2, 0.5, 0.6)),
        ("(0.252,0.280),(0.891,0.654)", None, (0.252, 0.28, 0.891, 0.654), (0.252, 0.28, 0.891, 0.654)),
        ("<box>2 128 999 553</box>", None, (0.002, 0.128, 0.999, 0.553), (0.002, 0.128, 0.999, 0.553)),
        ("[64, 48, 1280, 480]", (64, 48, 1280, 480), (0.1, 0.1, 1.0, 1.0), (0.064, 0.048, 1.28, 0.48)),
        ("nothing", None, None, None),
        ("[" + "9" * 400 + ", 1, 2, 3]", None, (2 / 640, 1 / 480, 1.0, 3 / 480), None),
    ],
)
def test_the_same_answer_to_three_scorers(text: str, lmms: object, vlmevalkit: object, migician: object) -> None:
    assert lmms_eval_box(text) == lmms
    box = vlmevalkit_box(text, (WIDTH, HEIGHT))
    assert box == vlmevalkit or box == pytest.approx(vlmevalkit)
    assert migician_box(text) == migician
