"""The record: JSON round trip and every field's check."""

import json
from dataclasses import replace

import pytest

from tests.unit.data_samples import sample
from ts_lightning.data.sample import Sample

KEYS = ["id", "source", "task", "subtask", "tags", "images", "turns", "regions", "answer", "answers", "choices", "meta"]


POINTS = json.loads(sample(0).to_json())["regions"][0] | {"box": None, "points": [[0.5, 0.5]] * 20_001}


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_json_round_trip_keeps_every_field():
    one = sample(3, images=2)
    back = Sample.from_json(one.to_json(), key=one.key, image_bytes=one.image_bytes)
    assert back == one
    assert back.turns[1].steps == [(0, 24)]
    assert back.regions[0].box == (0.125, 0.25, 0.5, 1.0)


def test_json_has_every_key_and_nothing_else():
    record = json.loads(Sample(id="a", turns=sample(0).turns).to_json())
    assert list(record) == KEYS
    assert record["answer"] is None
    assert record["meta"] is None
    assert list(json.loads(sample(0).to_json())["regions"][0]) == [
        *("image", "phrase", "category", "iscrowd", "area_px", "box", "boxes", "points", "polygon"),
    ]


def test_a_region_may_be_boxes_points_or_a_polygon():
    one = sample(0)
    for form, value in {
        "boxes": [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)],
        "points": [(0.5, 0.5)],
        "polygon": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)],
    }.items():
        one.regions = [replace(sample(0).regions[0], box=None, **{form: value})]
        assert getattr(Sample.from_json(one.to_json()).regions[0], form) == value


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["id"], "", "field id: seen '', expected a non-empty string"),
        (["id"], 7, "field id: seen 7, expected a string"),
        (["tags"], ["a", 1], "field tags: seen 1, expected strings"),
        (["images", 0, "width"], 0, "field images[0].width: seen 0, expected pixels, an integer above 0"),
        (["images", 0, "height"], True, "field images[0].height: seen True"),
        (["turns"], [], "field turns: seen '0 turns', expected pairs"),
        (["turns", 0, "role"], "assistant", "field turns[0].role: seen 'assistant', expected 'user'"),
        (["turns", 0, "text"], "Where?", "field turns[0].text: seen '0 <image>', expected 1"),
        (["turns", 1, "text"], "<image>", "field turns[1].text: seen '1 <image>', expected 0"),
        (["turns", 1, "text"], "{region:1}", "field turns[1].text: seen '{region:1}', expected a region"),
        (["turns", 1, "steps"], [[0, 25]], "field turns[1].steps: seen [0, 25], expected ascending spans"),
        (["turns", 1, "steps"], [[4, 8], [2, 9]], "field turns[1].steps: seen [2, 9], expected ascending spans"),
        (["regions", 0, "image"], 1, "field regions[0].image: seen 1, expected an index below 1"),
        (["regions", 0, "box"], [0.1, 0.2, 0.3], "field regions[0].box: seen 3 numbers"),
        (["regions", 0, "box"], [0.5, 0.2, 0.3, 0.4], "field regions[0].box: seen a reversed or empty box"),
        (["regions", 0, "box"], [0.1, 0.2, float("nan"), 0.4], "field regions[0].box: seen a box with NaN"),
        (["regions", 0, "box"], [0.1, 0.2, 1.3, 0.4], "field regions[0].box: seen a box outside the image"),
        (["regions", 0, "box"], ["0.1", 0.2, 0.3, 0.4], "field regions[0].box: seen ['0.1', 0.2, 0.3, 0.4]"),
        (["regions", 0, "boxes"], [], "field regions[0]: seen ['box', 'boxes'], expected at most one of"),
        (["regions", 0, "iscrowd"], 2, "field regions[0].iscrowd: seen 2, expected 0 or 1"),
        (["regions", 0, "area_px"], float("nan"), "field regions[0].area_px: seen nan"),
        (["regions", 0, "area_px"], float("inf"), "field regions[0].area_px: seen inf"),
        (["regions", 0, "box"], [0.1, 0.2, 10**400, 0.4], "field regions[0].box: seen [0.1, 0.2, 1000"),
        (["images", 0, "width"], 10**400, "field images[0].width: seen 1000"),
        (["turns", 1, "text"], "x" * 200_001, "field texts: seen 2000"),
        (["answer", "text"], "\ud83d", "field texts: seen '\\ud83d', expected text that can be written as UTF-8"),
        (["answer", "regions"], [1], "field answer.regions: seen 1, expected an index below 1"),
        (["meta"], [], "field meta: seen [], expected an object or null"),
        (["meta"], nested(51), "field meta: seen 'more than 50 levels', expected at most 50"),
        (["meta"], {"a": ["b"] * 20_001}, "field meta: seen '20003 values', expected at most 20000"),
        (["meta"], {"a": {"b": "\udc00"}}, "field texts: seen '\\udc00', expected text that can be written as UTF-8"),
        (["images", 0, "name"], "\ud83d.jpg", "field texts: seen '\\ud83d', expected text that can be written"),
        (["tags"], ["a"] * 20_001, "field tags: seen '20001 items', expected at most 20000"),
        (["answers"], [["a"] * 1_000_000], "field answers: seen ['a', 'a', "),
        (["regions", 0, "box"], ["a"] * 1_000_000, "field regions[0].box: seen ['a', 'a', "),
        (["regions", 0], POINTS, "field regions[0].points: seen '20001 items', expected at most 20000"),
        (["turns", 1, "text"], "{region:" + "9" * 5000 + "}", "field turns[1].text: seen '{region:"),
    ],
)
def test_a_wrong_field_is_one_line_with_shard_key_and_field(path, value, expected):
    record = json.loads(sample(0).to_json())
    place = record
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ValueError) as error:
        Sample.from_json(json.dumps(record), key="k", shard="x.tar")
    assert str(error.value).startswith(f"x.tar:k: {expected}")
    assert "\n" not in str(error.value)


def test_missing_and_unknown_keys_are_named():
    record = json.loads(sample(0).to_json())
    del record["choices"]
    with pytest.raises(ValueError, match=r"^x:k: field record: seen no 'choices', expected it \(null when unused\)$"):
        Sample.from_json(json.dumps(record), "k", "x")
    with pytest.raises(ValueError, match="seen unknown 'extra', expected id, source"):
        Sample.from_json(json.dumps(record | {"choices": None, "extra": 1}), "k", "x")
    with pytest.raises(ValueError, match=r"^x:k: json: seen .*, expected one JSON object"):
        Sample.from_json(b"{", "k", "x")


def test_a_wrong_value_of_any_size_is_named_at_once():
    record = json.loads(sample(0).to_json()) | {"answer": [list(range(100))] * 100_000}
    with pytest.raises(ValueError, match="field answer: seen") as error:
        Sample.from_json(json.dumps(record), "k", "x")
    assert len(str(error.value)) < 200
