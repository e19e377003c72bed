"""Ref-L4, HumanRef, GroundingME, MC-Bench, ODinW-13 and V*Bench in their public layouts, made small."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data_samples import photo, picture, put
from ts_lightning.data.sample import REGION_MARK
from ts_lightning.grounding import get_codec
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.pipelines.convert import reader
from ts_lightning.pipelines.converters import odinw
from ts_lightning.pipelines.converters.source import Dropped, Excluded, Pictures
from ts_lightning.training.records import record_of

pa = pytest.importorskip("pyarrow", reason="Parquet layouts need pyarrow")
from pyarrow import parquet  # noqa: E402


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(name: str, path: Path, **options: Any) -> tuple[list[Any], Dropped]:
    dropped = Dropped()
    return list(reader(name)(path, Pictures(dropped=dropped), **options)), dropped


def truth_scores(samples: list[Any], protocol: str, codec: str = "qwen3_vl") -> float:
    """The main figure of the true answers themselves, in a notation of 0-1000."""
    notation = get_codec(codec)
    records = []
    for one in samples:

        def written(match: re.Match[str], one: Any = one) -> str:
            region = one.regions[int(match[1])]
            return notation.format([region.box], one.sizes[region.image])

        text = REGION_MARK.sub(written, one.turns[-1].text)
        records.append(record_of(one, text, notation, "s"))
    scored = make_protocol(protocol)
    scored.update(records)
    return scored.compute()[scored.main]


def test_ref_l4(tmp_path: Path) -> None:
    row = {"caption": "The cat on the left", "bbox": [10.0, 5.0, 40.0, 20.0], "bbox_area": 800.0, "width": 100}
    row |= {"height": 50, "file_name": "a.jpg", "is_rewrite": False}
    rows = [row | {"id": 1, "ori_category_id": "refcoco_17"}, row | {"id": 2, "ori_category_id": "o365_140"}]
    table(tmp_path / "ref-l4-val.parquet", [*rows, row | {"id": 3, "ori_category_id": "o365_9", "bbox": [0.0] * 4}])
    photo(tmp_path / "images/a.jpg")
    made, dropped = read("ref-l4", tmp_path, split="val")
    assert [one.meta["class"] for one in made] == ["o365_140", "o365_140"]  # COCO's cats are Objects365's
    assert made[0].true_box == (0.1, 0.1, 0.5, 0.5)
    assert made[0].answer_regions[0].area_px == 800
    assert sum(dropped.values()) == 1
    assert truth_scores(made, "ref_l4") == 1
    with pytest.raises(ValueError, match=r"no ref-l4-test\.parquet"):
        read("ref-l4", tmp_path)


def test_humanref(tmp_path: Path) -> None:
    row = {
        "image_name": "a.jpg",
        "referring": "the man in red",
        "sub_domain": "x",
        "candidate_boxes": [[0, 0, 9, 9]] * 3,
    }
    two = {"id": 0, "domain": "attribute", "answer_boxes": [[10, 5, 50, 25], [60, 5, 90, 25]]}
    none = {"id": 1, "domain": "rejection", "answer_boxes": []}
    put(tmp_path / "annotations.jsonl", "".join(json.dumps(row | one) + "\n" for one in (two, none)))
    photo(tmp_path / "images/a.jpg")
    made, dropped = read("humanref", tmp_path)
    assert [box for region in made[0].answer_regions for box in region.all_boxes] == [
        (0.1, 0.1, 0.5, 0.5),
        (0.6, 0.1, 0.9, 0.5),
    ]
    assert made[0].meta["people"] == 3
    assert made[1].tags == ["negative"]
    assert made[1].turns[-1].text == "This question is invalid."
    assert not dropped
    assert truth_scores(made, "humanref") == 1


def test_groundingme_and_its_rejections(tmp_path: Path) -> None:
    image = {"bytes": picture(1, (100, 50)), "path": "x.jpg"}
    row = {"image": image, "description": "The object is red.", "detection_type": "cup", "subtask_l2": "Color"}
    rows = [row | {"id": 0, "bbox": [10, 5, 50, 25], "subtask_l1": "Spatial"}]
    rows += [row | {"id": 1, "bbox": None, "subtask_l1": "Rejection"}]
    rows += [row | {"id": 2, "bbox": [1, 2, 3, 4], "subtask_l1": "Limited", "image": {"bytes": b"no", "path": None}}]
    table(tmp_path / "data/test-0.parquet", rows)
    made, dropped = read("groundingme", tmp_path)
    assert [one.true_box for one in made] == [(0.1, 0.1, 0.5, 0.5), None]
    assert [one.subtask for one in made] == ["Spatial", "Rejection"]
    assert made[0].image_bytes == [image["bytes"]]
    assert dict(dropped) == {"pictures that can't be decoded": 1}
    assert truth_scores(made, "groundingme") == 1


def test_mc_bench(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"D3/{i}.jpg", "width": 100, "height": 50} for i in range(4)]
    note = {"area": 800, "iscrowd": 0, "text_id": 0, "bbox": [10, 5, 40, 20]}
    notes = [note | {"id": 0, "image_id": 1, "category_id": 2}, note | {"id": 1, "image_id": 0, "category_id": 1}]
    texts = [{"id": 0, "images_id": [0, 1], "text": "Balls", "positive_sample": True, "text_style": "Comparison"}]
    texts += [{"id": 1, "images_id": [2, 3], "text": "Cars", "positive_sample": False, "text_style": "Reasoning"}]
    put(tmp_path / "mc-bench_v0.2_val.json", {"images": images, "annotations": notes, "descriptions": texts})
    for one in images:
        photo(tmp_path / "MC-Bench_images" / one["file_name"])
    made, dropped = read("mc-bench", tmp_path)
    assert made[0].turns[-1].text == "Image-1: {region:0}. Image-2: {region:1}"
    assert [region.image for region in made[0].regions] == [0, 1]
    assert made[0].meta["objects"] == [[0, 1, 10, 5, 40, 20], [1, 2, 10, 5, 40, 20]]
    assert made[1].tags == ["negative"]
    assert made[1].meta["objects"] == []
    assert not dropped
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs faster-coco-eval")
    assert truth_scores(made[1:], "mc_bench") != truth_scores(made[1:], "mc_bench")  # NaN: no box is asked for
    made[0].meta["objects"][1][1] = 1  # one group: an answer in words can say no more
    assert truth_scores(made, "mc_bench", "qwen2_vl") == 1


def test_odinw_asks_for_all_classes_of_a_set(tmp_path: Path) -> None:
    data = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 50}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 5, 40, 20], "area": 700, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
    }
    place = tmp_path / odinw.PLACES["thermalDogsAndPeople"]
    put(place / "annotations_without_background.json", data)
    photo(place / "a.jpg")
    (made,), dropped = read("odinw", tmp_path)
    assert "dog, person" in made.question
    assert made.turns[-1].text == "dog {region:0}, person {region:1}."
    assert made.meta["objects"] == [[1, 10, 5, 40, 20, 700, 0], [0, 0, 0, 10, 10, 100, 0]]
    assert dict(dropped) == {odinw.MISSING: 12}
    pytest.importorskip("faster_coco_eval", reason="COCO AP needs faster-coco-eval")
    assert truth_scores([made], "detection", "qwen2_vl") == 1
    with pytest.raises(ValueError, match="none of the sets"):
        read("odinw", tmp_path / "elsewhere")


def test_vstar(tmp_path: Path) -> None:
    text = "What is it?\n(A) a red cup\n(B) a dog\nAnswer with the option's letter from the given choices directly."
    row = {"image": "direct_attributes/a.jpg", "text": text, "category": "direct_attributes", "question_id": 0}
    put(tmp_path / "test_questions.jsonl", "".join(json.dumps(row | {"label": one}) + "\n" for one in "BE"))
    photo(tmp_path / "direct_attributes/a.jpg")
    (made,), dropped = read("vstar", tmp_path, template="option_letter")
    assert made.choices == ["a red cup", "a dog"]
    assert made.answers == ["a dog"]
    assert made.question == text.replace("(A)", "A.").replace("(B)", "B.")
    assert sum(dropped.values()) == 1  # a label without an option


def test_excluded_pictures_are_left_out_of_the_hard_sets(tmp_path: Path) -> None:
    row = {"id": 1, "caption": "A cat", "bbox": [10.0, 5.0, 40.0, 20.0], "width": 100, "height": 50}
    table(tmp_path / "ref-l4-test.parquet", [row | {"file_name": "COCO_train2014_000000000009.jpg"}])
    dropped = Dropped()
    excluded = Excluded({"000000000009.jpg": "9"})
    assert list(reader("ref-l4")(tmp_path, Pictures(excluded=excluded, dropped=dropped))) == []
    assert dict(dropped) == {"pictures that are excluded": 1}


def test_a_parquet_file_that_is_none_or_lacks_a_column_says_so(tmp_path: Path) -> None:
    put(tmp_path / "ref-l4-test.parquet", "no")
    with pytest.raises(ValueError, match=r"ref-l4-test\.parquet: seen no Parquet"):
        read("ref-l4", tmp_path)
    table(tmp_path / "ref-l4-test.parquet", [{"id": 1}])
    with pytest.raises(ValueError, match="seen no column 'caption'"):
        read("ref-l4", tmp_path)
