"""Ref-L4, GroundingME, HumanRef, MC-Bench, ODinW-13 and V*Bench against their rules written out plainly."""

import json
import re
from itertools import permutations
from random import Random
from typing import Any

import numpy as np
import pytest

from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.protocols.detection import best_group, named_boxes
from ts_lightning.metrics.record import Record, Truth

W, H = 640, 480
Px = list[float]


def random_box(random: Random) -> Px:
    x, y = random.uniform(0, W - 60), random.uniform(0, H - 60)
    return [x, y, x + random.uniform(5, W - x), y + random.uniform(5, H - y)]


def near(box: Px, random: Random, spread: float = 20) -> Px:
    x1, y1, x2, y2 = (v + random.gauss(0, spread) for v in box)
    x1, x2 = sorted(min(max(v, 0), W) for v in (x1, x2))
    y1, y2 = sorted(min(max(v, 0), H) for v in (y1, y2))
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


def shares(box: Px) -> tuple[float, ...]:
    return tuple(v / side for v, side in zip(box, (W, H) * 2, strict=True))


def written(box: Px) -> str:
    return "[{:.5f},{:.5f},{:.5f},{:.5f}]".format(*shares(box))


def rounded(box: Px) -> Px:
    return [round(v, 5) * side for v, side in zip(shares(box), (W, H) * 2, strict=True)]


def iou(a: Px, b: Px) -> float:
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0


def record(
    number: int, text: str, boxes: list[Px], meta: dict[str, Any], sizes: Any = ((W, H),), **more: Any
) -> Record:
    true = tuple(map(shares, boxes))
    truth = Truth(box=true[0] if len(true) == 1 else None, boxes=true, **more.pop("truth", {}))
    return Record("s", f"k{number:04d}", text, truth, "shikra", "decimals:5", "original", sizes, meta=meta, **more)


def figures(name: str, records: list[Record], reading: str | None = None) -> dict[str, Any]:
    protocol = make_protocol(name, reading)
    protocol.update(records)
    return protocol.compute()


def test_ref_l4() -> None:
    random, records, rows = Random(0), [], []
    for number in range(400):
        true = random_box(random)
        said = near(true, random) if random.random() < 0.9 else None
        kind = random.choice(["o365_1", "o365_2", "coco_3"])
        area = (true[2] - true[0]) * (true[3] - true[1])
        records.append(
            record(number, written(said) if said else "No.", [true], {"class": kind}, truth={"area_px": area})
        )
        rows.append((0.0 if said is None else iou(rounded(said), true), kind, area**0.5))
    steps = [i / 100 for i in range(50, 100, 5)]

    def above(chosen: list[Any], threshold: float) -> float:
        return float(np.mean([one[0] > threshold for one in chosen]))

    def macc(chosen: list[Any]) -> float:
        return float(np.mean([above(chosen, step) for step in steps]))

    found = figures("ref_l4", records)
    sizes = {"small": [r for r in rows if r[2] < 128], "large": [r for r in rows if r[2] > 256]}
    sizes["medium"] = [r for r in rows if 128 <= r[2] <= 256]
    classes = [[r for r in rows if r[1] == kind] for kind in sorted({r[1] for r in rows})]
    wanted = {"acc50_above": above(rows, 0.5), "acc75_above": above(rows, 0.75), "acc90_above": above(rows, 0.9)}
    wanted |= {"macc": macc(rows)} | {f"macc_{name}": macc(group) for name, group in sizes.items()}
    wanted |= {f"acc50_{name}": above(group, 0.5) for name, group in sizes.items()}
    wanted |= {"acc50_classes": np.mean([above(group, 0.5) for group in classes])}
    wanted |= {"macc_classes": np.mean([macc(group) for group in classes])}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def official_groundingme(text: str) -> Px:
    try:
        match = re.search(r'\{.*"bbox_2d".*\}', text, re.DOTALL)
        if match:
            box = json.loads(match.group(0))["bbox_2d"]
            if box is None:
                return [0, 0, 0, 0]
            if isinstance(box, list) and len(box) == 4:
                return [float(n) for n in box]
    except Exception:
        pass
    number = r"(-?\d+(?:\.\d+)?)"
    found = re.findall(rf"{number}[\s,]+{number}[\s,]+{number}[\s,]+{number}", text)
    return [float(n) for n in found[-1]] if found else [0, 0, 0, 0]


def test_groundingme_official() -> None:
    random, records, scores = Random(1), [], []
    for number in range(400):
        true = [float(round(v)) for v in random_box(random)]
        said = [round(v) for v in near(true, random)]
        small = [round(999 * v / side) for v, side in zip(said, (W, H) * 2, strict=True)]
        parts = [round(v / side, 3) for v, side in zip(said, (W, H) * 2, strict=True)]
        text = random.choice(
            [
                f'{{"bbox_2d": {said}}}',
                f'I think [1, 2, 3, 4], so ```json\n{{"bbox_2d": {small}}}```',
                f'{{"bbox_2d": {parts}}}',
                '{"bbox_2d": null}',
                f"It is {small}.",
                f'{{"bbox_2d": [1, 2]}} {{"bbox_2d": {said}}}',
                f'{{"bbox_2d": "{said}"}}',
                f"[{said[2]}, {said[3]}, {said[0]}, {said[1]}]",
                "Nothing fits.",
            ]
        )
        rejects = random.random() < 0.3
        meta = {"subtask_l1": "Rejection" if rejects else "Spatial", "subtask_l2": "a" if number % 2 else "b"}
        records.append(record(number, text, [] if rejects else [true], meta))
        said = official_groundingme(text)
        scale = [1, 1] if all(v <= 1 for v in said) else [999, 999]
        other = [v / s * side for v, s, side in zip(said, scale * 2, (W, H) * 2, strict=True)]
        zero = [0.0] * 4
        if rejects:
            score = float(said == zero)
        else:
            score = 0.0 if said == zero else max(iou(said, true), iou(other, true))
        scores.append((score, meta))
    found = figures("groundingme", records, "official")
    hits = [score >= 0.5 for score, _ in scores]
    assert found["acc50"] == pytest.approx(np.mean(hits))
    assert found["acc75"] == pytest.approx(np.mean([score >= 0.75 for score, _ in scores]))
    assert found["miou"] == pytest.approx(np.mean([score for score, _ in scores]))
    rejected = [hit for hit, (_, meta) in zip(hits, scores, strict=True) if meta["subtask_l1"] == "Rejection"]
    assert found["rejected"] == pytest.approx(np.mean(rejected))
    assert set(found["by_subtask_l2"]) == {"a", "b"}


def test_groundingme_lenient_takes_an_answer_without_a_box_as_the_rejection() -> None:
    box = [64.0, 48.0, 320.0, 240.0]
    there, none = {"subtask_l1": "Spatial"}, {"subtask_l1": "Rejection"}
    asked = [(written(box), [box], there), ("No.", [box], there), (written(box), [], none), ("No.", [], none)]
    found = figures("groundingme", [record(i, text, true, meta) for i, (text, true, meta) in enumerate(asked)])
    assert (found["acc50"], found["acc50_there"], found["rejected"], found["rejected_wrongly"]) == (0.5,) * 4


def official_humanref(true: list[Px], said: list[Px], threshold: float) -> tuple[float, float]:
    if not said:
        return 0.0, 0.0
    matches, used = 0, set()
    for one in true:
        best, place = 0.0, -1
        for i, box in enumerate(said):
            value = iou(one, box)
            if i not in used and value > best and value >= threshold:
                best, place = value, i
        if place != -1:
            matches += 1
            used.add(place)
    return matches / len(true), matches / len(said)


def test_humanref() -> None:
    random, records, rows, rejected = Random(2), [], [], []
    for number in range(300):
        true = [random_box(random) for _ in range(random.randint(1, 4))]
        said = [near(box, random) for box in true if random.random() < 0.8]
        said += [random_box(random) for _ in range(random.randint(0, 2))]
        rejects = random.random() < 0.2
        people = random.choice([0, 5])
        meta = {"domain": "rejection" if rejects else "attribute", "people": people}
        text = " ".join(map(written, said)) or "This question is invalid."
        records.append(record(number, text, [] if rejects else true, meta))
        if rejects:
            rejected.append(not said)
            continue
        said = [rounded(box) for box in said]
        each = []
        for threshold in np.arange(0.5, 1.0, 0.05):
            recall, precision = official_humanref(true, said, threshold)
            f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
            shares_of = (len(true) / people, len(said) / people) if people else (0.0, 0.0)
            each.append((recall, precision, f1 * (min(1.0, shares_of[0] / shares_of[1]) if shares_of[1] else 0.0)))
        rows.append(np.array(each))
    found = figures("humanref", records)
    means = np.array(rows).mean(axis=0)
    wanted = dict(zip(("recall", "precision", "density_f1"), means.mean(axis=0), strict=True))
    wanted |= dict(zip(("recall50", "precision50", "density_f1_50"), means[0], strict=True))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["rejected"] == pytest.approx(np.mean(rejected))


def coco_of(annotations: list[dict[str, Any]], images: list[int], categories: list[int]) -> Any:
    coco = pytest.importorskip("pycocotools.coco", reason="the reference needs pycocotools").COCO()
    coco.dataset = {
        "images": [{"id": i, "width": W, "height": H} for i in images],
        "annotations": [
            one | {"id": i, "area": one["bbox"][2] * one["bbox"][3]} for i, one in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, "name": f"group {i}"} for i in categories],
    }
    coco.createIndex()
    return coco


def evaluated(coco: Any, results: list[dict[str, Any]]) -> Any:
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def xywh(box: Px) -> Px:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_mc_bench_against_pycocotools() -> None:
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs faster-coco-eval")
    random, records, truth, results, right = Random(3), [], [], [], []
    for pair in range(60):
        ids = [2 * pair, 2 * pair + 1]
        groups = random.choice([[], [1], [1], [1, 2]])
        true = [(image, group, random_box(random)) for group in groups for image in (0, 1) if random.random() < 0.8]
        said = [(image, near(box, random)) for image, _, box in true if random.random() < 0.8]
        said += [(random.randint(0, 1), random_box(random))] if random.random() < 0.3 else []
        said.sort(key=lambda one: one[0])
        text = ". ".join(f"Image-{image + 1}: {written(box)}" for image, box in said) or "This question is invalid."
        meta = {"image_ids": ids, "objects": [[image, group, *xywh(box)] for image, group, box in true]}
        records.append(record(pair, text, [], meta, ((W, H), (W, H))))
        found = [(image, rounded(box)) for image, box in said]
        best, choice = -1.0, 1
        for (group,) in permutations(sorted({one[1] for one in true}), 1):  # the official search, groups of one
            overlaps: list[float] = []
            for image in (0, 1):
                a = [box for i, box in found if i == image]
                b = [box for i, g, box in true if i == image and g == group]
                size = min(len(a), len(b))
                tries = [
                    [iou(x, y) for x, y in zip(left, right_, strict=True)]
                    for left in permutations(a, size)
                    for right_ in permutations(b, size)
                ]
                overlaps += max(tries, key=sum) if size else []
            value = sum(overlaps) / len(overlaps) if overlaps else 0.0
            if value > best:
                best, choice = value, group
        truth += [{"image_id": ids[i], "category_id": g, "bbox": xywh(b), "iscrowd": 0} for i, g, b in true]
        results += [
            {"image_id": ids[i], "category_id": choice if found else 1, "bbox": xywh(b), "score": 1.0} for i, b in found
        ]
        right.append(all(any(i == im for i, _ in found) == any(i == im for i, _, _ in true) for im in (0, 1)))
    categories = sorted({one["category_id"] for one in truth})
    evaluation = evaluated(coco_of(truth, list(range(120)), categories), results)
    weighted = 0.0
    for k, category in enumerate(categories):
        cell = evaluation.eval["precision"][0, :, k, 0, 2]
        weighted += sum(one["category_id"] == category for one in truth) / len(truth) * cell[cell > -1].mean()
    found_ = figures("mc_bench", records)
    assert found_["ap50"] == pytest.approx(weighted)
    assert found_["pictures"] == pytest.approx(np.mean(right))


def test_the_group_of_an_answer_is_the_one_that_fits_in_both_pictures() -> None:
    true = [[0, 1, 0, 0, 10, 10], [1, 1, 0, 0, 10, 10], [0, 2, 50, 50, 10, 10], [1, 2, 50, 50, 10, 10]]
    assert best_group([[0, 50, 50, 10, 10], [1, 51, 50, 10, 10]], true) == 2
    assert best_group([], true) == 1


def test_odinw_against_pycocotools() -> None:
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs faster-coco-eval")
    random, records, scores = Random(4), [], []
    for name in ("Packages", "pothole"):
        classes, truth, results = ["dog", "hot dog", "person"], [], []
        for image in range(30):
            true = [(random.randrange(3), random_box(random)) for _ in range(random.randint(1, 5))]
            said = [(number, near(box, random)) for number, box in true if random.random() < 0.8]
            said += [(random.randrange(3), random_box(random))]
            text = ", ".join(f"{classes[number]} {written(box)}" for number, box in said) + "."
            objects = [[n, *xywh(b), (b[2] - b[0]) * (b[3] - b[1]), 0] for n, b in true]
            meta = {"image_id": image, "classes": classes, "objects": objects}
            records.append(record(len(records), text, [b for _, b in true], meta, subtask=name))
            truth += [{"image_id": image, "category_id": n, "bbox": xywh(b), "iscrowd": 0} for n, b in true]
            results += [{"image_id": image, "category_id": n, "bbox": xywh(rounded(b)), "score": 1.0} for n, b in said]
        evaluation = evaluated(coco_of(truth, list(range(30)), [0, 1, 2]), results)
        evaluation.summarize()
        scores.append(evaluation.stats)
    found = figures("detection", records)
    wanted = dict(zip(("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"), np.mean(scores, axis=0), strict=False))
    assert {name: found[name] for name in ("AP", "AP50", "AP75", "AP_M", "AP_L")} == pytest.approx(
        {name: wanted[name] for name in ("AP", "AP50", "AP75", "AP_M", "AP_L")}
    )
    assert found["subtasks"]["pothole"]["AP"] == pytest.approx(scores[1][0])
    assert found["no_class"] == 0


def test_a_box_has_the_class_that_its_label_or_the_words_before_it_name() -> None:
    box = "[0.10000,0.10000,0.50000,0.50000]"
    meta = {"classes": ["dog", "hot dog", "Person_x"]}

    def numbers(text: str) -> tuple[list[int], int]:
        found, unnamed = named_boxes(record(0, text, [], meta), meta["classes"])
        return [one[0] for one in found], unnamed

    assert numbers(f"A hot dog {box} {box}, one dog: {box} and person x {box}") == ([1, 1, 0, 2], 0)
    assert numbers(f"{box} cat {box} hotdog {box}") == ([], 3)


@pytest.mark.parametrize(
    ("text", "option"),
    [("B", 1), ("(C) green", 2), ("The answer is: D", 3), ("Blue", 1), ("answer A", 0), ("I see it", None), ("", None)],
)
def test_vstar_by_lmms_eval(text: str, option: int | None) -> None:
    """Its rules by hand: a first letter counts, also that of a word."""
    meta = {"question_id": 1}
    truth = Truth(answers=("x",))
    one = Record("s", "k", text, truth, choices=("w", "x", "y", "z"), task="understanding", meta=meta)
    assert make_protocol("choice", "lmms_eval").option(one, "lmms_eval") == option  # type: ignore[attr-defined]
    assert figures("choice", [one], "lmms_eval")["accuracy"] == float(option == 1)
