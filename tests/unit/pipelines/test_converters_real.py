"""Converters on real files: counts, boxes to 1e-6, text verbatim. Skipped where the files are absent."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ts_lightning.pipelines.converters import coco, mig_bench, pope, refcoco, vlm_r1
from ts_lightning.pipelines.converters.files import plain_pickles
from ts_lightning.pipelines.converters.source import Dropped, Excluded, Pictures

REAL = Path(__file__).parents[4] / "shared/real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}")


def test_refcoco_split_file() -> None:
    truth = plain_pickles(REAL / "refcoco/unc_testA.pth", 4)[3]
    samples = list(refcoco.read(REAL / "refcoco/unc_testA.pth"))
    assert (len(samples), len({s.images[0].name for s in samples}), len({s.key for s in samples})) == (5657, 750, 5657)
    for sample, (name, annotation, (x, y, w, h), phrase, _) in zip(samples, truth, strict=True):
        image, region = sample.images[0], sample.regions[0]
        x1, y1, x2, y2 = (v * side for v, side in zip(region.box, (image.width, image.height) * 2, strict=True))
        assert [x1, y1, x2, y2] == pytest.approx([x, y, x + w, y + h], abs=1e-6)
        assert (image.name, region.phrase, sample.meta["annotation"]) == (name, phrase, annotation)
        assert phrase in sample.turns[0].text
        sample.validate()


def test_mig_bench_and_the_picture_that_is_asked_about() -> None:
    truth = json.loads((REAL / "mig_bench/MIG_data.json").read_text())
    samples = list(mig_bench.read(REAL / "mig_bench"))
    assert len(samples) == 4295
    assert Counter(s.subtask for s in samples) == Counter(row["task"] for row in truth)
    assert len({s.subtask for s in samples}) == 10
    known = [s for s in samples if s.meta["image"] is not None]
    assert len(known) == 3767
    assert Counter(s.meta["image_from"].split(":")[0] for s in samples) == {
        "question": 2065,
        "task": 1203,
        "additional_info": 499,
        "not stated": 528,
    }
    assert {s.subtask for s in samples if s.meta["image"] is None} == {"diff"}
    for sample, row in zip(samples, truth, strict=True):
        x1, y1, x2, y2 = (min(v, 1.0) for v in row["answer"])  # one is upside down, one leaves its picture
        expected = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        assert sample.regions[-1].box == pytest.approx(expected, abs=1e-6)
        assert sample.meta["question"] == row["question"]
        assert [image.name for image in sample.images] == [Path(name).name for name in row["images"]]
        assert 0 <= (sample.meta["image"] or 0) < len(sample.images)
        sample.validate()
    tracked = next(s for s in samples if s.subtask == "object_tracking")
    assert tracked.regions[0].box == (0.139, 0.305, 0.495, 0.743)
    assert "(the" not in tracked.turns[0].text
    assert "({region:0})" in tracked.turns[0].text


def test_problem_solution_rows() -> None:
    truth = json.loads((REAL / "refcocos/refcocos_test.json").read_text())
    samples = list(vlm_r1.read(REAL / "refcocos/refcocos_test.json"))
    assert (len(samples), sum("negative" in s.tags for s in samples)) == (173, 16)
    for sample, row in zip(samples, truth, strict=True):
        assert sample.turns[0].text == f"<image>\n{row['problem']}"
        assert sample.images[0].name == Path(row["image"]).name
        sample.validate()
        if row["solution"] is None:
            assert sample.answer.regions == []
            continue
        sides = (row["width"], row["height"]) * 2
        pixels = [v * side for v, side in zip(sample.regions[0].box, sides, strict=True)]
        assert pixels == pytest.approx(row["solution"], abs=1e-6)


def test_pope() -> None:
    samples = list(pope.read(REAL / "pope"))
    assert (len(samples), len({s.images[0].name for s in samples})) == (3000, 500)
    assert Counter(s.answer.text for s in samples) == {"yes": 1500, "no": 1500}
    assert samples[1].turns[0].text == "<image>\nIs there a car in the image?"


@pytest.mark.parametrize(
    ("split", "boxes", "crowds", "captions"), [("train2017", 739, 8, 400), ("val2017", 624, 5, 395)]
)
def test_coco_folder_loses_no_box_and_no_caption(split: str, boxes: int, crowds: int, captions: int) -> None:
    folder = REAL / "coco_mini"
    truth = {
        a["id"]: a for a in json.loads((folder / f"annotations/instances_{split}.json").read_text())["annotations"]
    }
    samples = list(coco.read(folder, split=split))
    regions = [
        (region, sample.images[0], number)
        for sample in samples
        if sample.subtask == "detection"
        for region, number in zip(sample.regions, sample.meta["annotation_ids"], strict=True)
    ]
    assert (len(regions), sum(r.iscrowd for r, _, _ in regions)) == (boxes, crowds)
    for region, image, number in regions:
        x1, y1, x2, y2 = (v * side for v, side in zip(region.box, (image.width, image.height) * 2, strict=True))
        x, y, w, h = truth[number]["bbox"]
        assert [x1, y1, x2, y2] == pytest.approx([x, y, x + w, y + h], abs=1e-6)
        assert region.area_px == truth[number]["area"]
    assert sum(len(s.answers) for s in samples if s.subtask == "caption") == captions
    assert len({s.key for s in samples}) == len(samples)


def test_leakage_list_and_the_subset_of_the_paper() -> None:
    dropped = Dropped()
    pictures = Pictures(excluded=Excluded({"000000000790.jpg": "790"}), dropped=dropped)
    names = {s.images[0].name for s in coco.read(REAL / "coco_mini", pictures, split="train2017")}
    assert "000000000790.jpg" not in names
    assert (len(names), dropped["pictures that are excluded"]) == (79, 1)
    counts = {
        (count_by, crowd): len(
            {
                s.images[0].name
                for s in coco.read(REAL / "coco_mini", split="train2017", max_objects=3, count_by=count_by, crowd=crowd)
            }
        )
        for count_by in ("instances", "categories")
        for crowd in ("exclude", "ignore", "count")
    }
    assert counts[("instances", "exclude")] <= counts[("instances", "ignore")] <= counts[("categories", "ignore")]
