"""Protocols against plainly written re-statements of the official scorers, on disturbed truths of real files."""

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.metrics.protocols import PROTOCOLS
from ts_lightning.metrics.protocols.boxes import predicted_image, score_boxes, score_localization, score_mig
from ts_lightning.metrics.protocols.readings import reading_scores
from ts_lightning.metrics.protocols.words import score_mme, score_pope
from ts_lightning.metrics.record import prediction_record
from ts_lightning.metrics.suites import compare, score_suites
from ts_lightning.pipelines.converters import mig_bench, refcoco

REAL = Path(__file__).parents[4] / "shared/real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no annotation files in {REAL}")
CODEC = get_codec("scout", CoordinateSpace("1000"))


def disturbed(box: tuple[float, ...], random: Random) -> str:
    """An answer: near, far, in several boxes, reversed, or none."""
    kind = random.random()
    moved = [min(max(v + random.gauss(0, 0.08), 0.0), 1.0) for v in box]
    text = CODEC.format([tuple(moved)]) if moved[0] < moved[2] and moved[1] < moved[3] else "[[9,9,5,5]]"
    if kind < 0.08:
        return "I can't see it."
    return f"{text} or [[1,1,900,900]]" if kind < 0.15 else f"It is here: {text}."


def official_iou(p: list[float], t: list[float]) -> float:
    width = max(0.0, min(p[2], t[2]) - max(p[0], t[0]))
    height = max(0.0, min(p[3], t[3]) - max(p[1], t[1]))
    inter = width * height
    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - inter
    return inter / union


def first_box(text: str) -> list[float] | None:
    """The first well-formed quadruple on 0-1000, as the scripts' regular expressions take it."""
    for match in re.finditer(r"\[\[(\d+),(\d+),(\d+),(\d+)\]\]", text):
        x1, y1, x2, y2 = (int(n) / 1000 for n in match.groups())
        if x1 < x2 and y1 < y2:
            return [x1, y1, x2, y2]
    return None


@needs_real
def test_rec_is_the_official_rule_on_refcoco() -> None:
    random, records, ious = Random(0), [], []
    for sample in refcoco.read(REAL / "refcoco/unc_testA.pth"):
        truth = sample.regions[0].box
        assert truth is not None
        text = disturbed(truth, random)
        records.append(prediction_record(sample, text, CODEC, "testA"))
        box = first_box(text)
        ious.append(0.0 if box is None else official_iou(box, list(truth)))
    figures = score_boxes(records)
    assert figures["acc50"] == pytest.approx(sum(i >= 0.5 for i in ious) / len(ious), abs=1e-9)
    assert figures["acc50_above"] == pytest.approx(sum(i > 0.5 for i in ious) / len(ious), abs=1e-9)
    assert figures["miou"] == pytest.approx(sum(ious) / len(ious), abs=1e-9)
    for t in range(1, 10):
        assert figures[f"acc{10 * t}"] == pytest.approx(sum(i >= t / 10 for i in ious) / len(ious), abs=1e-9)
    assert 0.99 < figures["ceiling_miou"] < 1
    assert figures["acc50_lenient"] == figures["acc50"] <= figures["acc50_oracle"]


@needs_real
def test_mig_bench_is_the_official_rule() -> None:
    random, records, by_task = Random(1), [], {}
    for sample in mig_bench.read(REAL / "mig_bench"):
        truth = sample.regions[sample.answer.regions[0]].box if sample.answer else None
        assert truth is not None
        shown = random.choice([f"It's in image-{random.randint(1, 2)}. ", "In the second image. ", ""])
        text = shown + disturbed(truth, random)
        records.append(prediction_record(sample, text, CODEC, "mig"))
        box = first_box(text)
        by_task.setdefault(sample.subtask, []).append(0.0 if box is None else official_iou(box, list(truth)))
    figures = score_mig(records)
    means = {task: sum(i >= 0.5 for i in ious) / len(ious) for task, ious in by_task.items()}
    assert len(records) == 4295
    assert figures["acc50"] == pytest.approx(sum(means.values()) / 10, abs=1e-9)
    spontaneous = [means[task] for task in ("diff", "view_diff", "common_object")]
    assert figures["spontaneous"] == pytest.approx(sum(spontaneous) / 3, abs=1e-9)
    assert figures["image_known"] == 3767
    assert 0 < figures["image_none_stated"] < 3767
    assert figures["by_task"]["region"]["questions"] == 1203


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("<bbox_id>[3-1]</bbox_id>", 2),
        ("In Image-2.", 1),
        ("It is in the 4th image", 3),
        ("the third image shows it", 2),
        ("no picture is named: [[1,2,3,4]]", None),
    ],
)
def test_the_stated_image(text: str, image: int | None) -> None:
    assert predicted_image({"text": text}) == image


def planted(text: str, box: Any, canonical: bool = True, size: tuple[int, int] = (200, 100)) -> dict[str, Any]:
    return {
        "key": text, "suite": "s", "text": text, "box": box, "canonical": canonical, "image_size": list(size),
        "truth": {"box": [0.1, 0.1, 0.5, 0.5]},
    }  # fmt: skip


def test_unequal_tasks_of_mig_bench_count_the_same_in_score_interval_and_difference() -> None:
    right, wrong = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    # nine of nine in one task, none of one in the other: (1 + 0) / 2, where the mean over questions is 0.9
    a = [planted(f"{i}", right) | {"subtask": "group"} for i in range(9)] + [planted("9", wrong) | {"subtask": "diff"}]
    b = [*a[:9], a[9] | {"box": right}]
    run = score_suites(a, {"s": "mig"})["s"]
    assert run["score"] == 0.5
    assert run["interval"] == (0.5, 0.5)  # within a task every question is the same
    for record in a + b:
        record["suite"] = "mig_bench"
    result = compare(a, b)["mig_bench"]
    assert (result["a"], result["b"], result["mean"], result["gained"]) == (0.5, 1.0, 0.5, ["9"])


def test_box_figures_are_of_double_precision() -> None:
    iou = 0.699999999  # in single precision it is 0.7
    records = [planted("", (0.1, 0.1, 0.1 + 0.4 * iou, 0.5)) | {"subtask": "diff"}]
    mig, sizes = score_mig(records), score_localization(records)
    assert (mig["acc70"], mig["acc50"]) == (0.0, 1.0)
    assert mig["miou"] == sizes["miou"] == sizes["miou_medium"] == pytest.approx(iou, abs=1e-12)


def test_captions_are_no_phrases_and_lists_of_boxes_no_rec() -> None:
    box = [0.1, 0.1, 0.5, 0.5]
    phrase = planted("a", box) | {"subtask": "phrase"}
    caption = planted("b", None) | {"subtask": "caption", "truth": {"box": None, "boxes": [box, box]}}
    for protocol, one in (("phrases", phrase), ("rec", phrase), ("localization", phrase), ("mig", phrase)):
        entry = score_suites([one, caption], {"s": protocol})["s"]
        assert (entry["questions"], entry["not_scored"], entry["score"]) == (1, 1, 1.0), protocol


def test_answers_that_say_neither_yes_nor_no_are_counted() -> None:
    meta = {"category": "color", "image_id": 1}
    records = [{"text": t, "truth": {"answers": ["yes"]}, "meta": meta} for t in ("Yes", "maybe", "no", "no")]
    assert score_pope(records)["unread"] == score_mme(records)["unread"] == 0.25


def test_strict_lenient_and_oracle_columns_by_hand() -> None:
    good = (0.1, 0.1, 0.5, 0.5)
    records = [
        planted("[[10,10,50,50]]", good),  # right in all three
        planted("[[ 10, 10, 50, 50 ]]", good, canonical=False),  # not for the strict one
        planted("[[20,10,100,50]]", (0.2, 0.1, 1.0, 0.5)),  # pixels of 200 x 100: for the oracle alone
        planted("nothing", None),
    ]
    figures = score_boxes(records)
    assert (figures["acc50_strict"], figures["acc50_lenient"], figures["acc50_oracle"]) == (0.25, 0.5, 0.75)
    assert (figures["unparsed"], figures["unparsed_strict"]) == (0.25, 0.5)


def test_a_model_in_another_frame_is_told_so() -> None:
    records = [planted("[[20,10,100,50]]", None, canonical=False) for _ in range(12)]
    figures = score_boxes(records)
    assert figures["acc50_strict"] == 0.0
    assert "pixels of the original" in figures["warning"]
    assert reading_scores(records)["pixels of the original"] == 1.0


def test_every_protocol_has_a_convention_and_its_main_figure() -> None:
    box = planted("[[10,10,50,50]]", (0.1, 0.1, 0.5, 0.5)) | {"subtask": "diff"}
    word = {
        "key": "k",
        "text": "A",
        "choices": ["a", "b"],
        "truth": {"answers": ["a"]},
        "meta": {"category": "c", "image_id": 1},
    }
    for name, protocol in PROTOCOLS.items():
        if name == "steps":
            parts = {"answer": "red", "step_boxes": [[]], "rejected": False}
            assert protocol.score([{"steps": parts, "truth": {"steps": parts}}])["right"] == 1.0
            continue
        record = box if name in ("localization", "rec", "phrases", "mig") else word
        assert protocol.main in protocol.score([record]), name
        assert protocol.convention, name
        values = protocol.values([record])
        if values:
            assert sum(values) / len(values) == pytest.approx(protocol.score([record])[protocol.main]), name
