"""Qwen2.5-VL's boxes as models write them: every form that says one box says it here, and nothing else does."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ts_lightning.grounding import get_codec
from ts_lightning.pipelines.converters import llava
from ts_lightning.pipelines.converters.source import Dropped, Pictures

CODEC = get_codec("qwen2_5_vl")
SIZE = (100, 50)
BOX = (0.1, 0.4, 0.3, 0.8)  # 10, 20, 30, 40 of 100 x 50
CASES = Path(__file__).parents[4] / "shared/cases/10-qwen-json-forms"


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [10, 20, 30, 40]}',
        '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}',
        '{"label": "dog", "bbox_2d": [10, 20, 30, 40]}',
        '{"bbox_2d": [10, 20, 30, 40], "confidence": 0.93, "label": "dog", "sub_label": null}',
        '{"id": 1, "attributes": {"color": "red"}, "tags": ["a", "b"], "bbox_2d": [10, 20, 30, 40]}',
        "{'bbox_2d': [10, 20, 30, 40], 'label': 'dog'}",
        "{'label': \"the man's dog\", 'bbox_2d': [10, 20, 30, 40]}",
        '{"bbox_2d": [10, 20, 30, 40], "label": "dog",}',
        '{"bbox_2d": [10, 20, 30, 40,], "label": "dog"}',
        '{"bbox_2d": [10, 20, 30, 40], "label": "a do',
        '{"bbox_2d": [10, 20, 30, 40], "lab',
        '{"bbox_2d": [10, 20, 30, 40]',
        '{"bbox_2d": [[10, 20, 30, 40]], "label": "dog"}',
        '{"bbox_2d": ["10", "20", "30", "40"]}',
        '{"bbox": [10, 20, 30, 40]}',
        '{"bbox_2d": [10.0, 20.0, 30.0, 40.0]}',
        '{\n\t"bbox_2d": [\n\t\t10,\n\t\t20,\n\t\t30,\n\t\t40\n\t],\n\t"label": "dog"\n}',
        '```json\n[\n\t{"label": "dog", "bbox_2d": [10, 20, 30, 40]}\n]\n```',
        'It is here: <answer>{"label": "dog", "bbox_2d": [10, 20, 30, 40]}</answer>.',
        '<answer>[{"bbox_2d": [10, 20, 30, 40], "label": "do</answer>',
        '{"bbox_2d": [10, 20, 30, 40], "label": "' + "x" * 500 + '"}',
        '{"objects": [{"label": "dog", "bbox_2d": [10, 20, 30, 40]}]}',
    ],
)
def test_every_form_of_one_box(text: str) -> None:
    mentions = CODEC.parse(text, SIZE)
    assert [mention.boxes for mention in mentions] == [[pytest.approx(BOX)]]
    written = text[mentions[0].start : mentions[0].end]
    assert written.startswith("{")
    assert "</answer>" not in written
    rest = text[: mentions[0].start] + text[mentions[0].end :]
    assert "bbox" not in rest
    assert "dog" not in rest


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [30, 20, 10, 40]}',  # reversed
        '{"bbox_2d": [10, 20, 30]}',
        '{"bbox_2d": [10, 20, 30, 4',  # who knows how the last number goes on
        '{"bbox_2d": "none"}',
        '{"bbox_2d": ["a", 20, 30, 40]}',
        '{"label": "bbox_2d: [10, 20, 30, 40]"}',
        '{"point_2d": [10, 20, 30, 40]}',
        "bbox_2d [10, 20, 30, 40]",
        "{" * 50,
    ],
)
def test_no_box(text: str) -> None:
    assert CODEC.parse(text, SIZE) == []


def test_labels_and_several_boxes() -> None:
    text = """[{"label": "a \\"dog\\"", "bbox_2d": [10, 20, 30, 40]}, {'bbox_2d': [[1, 2, 3, 4], [5, 6, 7, 8]]}]"""
    one, two = CODEC.parse(text, SIZE)
    assert (one.phrase, two.phrase) == ('a "dog"', None)
    assert [len(one.boxes), len(two.boxes)] == [1, 2]
    assert CODEC.parse('{"point_2d": [10, 20], "label": "x"}', SIZE)[0].regions[0].points == ((0.1, 0.4),)


def test_strict_reads_the_one_form_that_is_written() -> None:
    written = CODEC.reference([BOX], SIZE, phrase='a "dog"')
    assert [m.boxes for m in CODEC.parse_strict(written, SIZE)] == [[pytest.approx(BOX)]]
    for other in (written.replace("}", ",}"), written.replace('"', "'"), written.replace(": [", ":[")):
        assert CODEC.parse_strict(other, SIZE) == []


def test_every_order_of_keys_goes_round() -> None:
    members = {"bbox_2d": [10, 20, 30, 40], "label": "a, {b} [c] 'd'", "score": 0.5, "more": {"x": [1, 2]}, "n": None}
    for keys in permutations(members):
        mention = CODEC.parse(json.dumps({key: members[key] for key in keys}), SIZE)[0]
        assert (mention.boxes, mention.phrase) == ([pytest.approx(BOX)], members["label"])
        assert CODEC.parse_strict(CODEC.canonical(mention, SIZE), SIZE)[0].boxes == mention.boxes


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no files in {CASES}")
@pytest.mark.parametrize(
    ("name", "boxes"),
    [
        ("llava_all_label_first", 2),
        ("llava_json_label_first", 2),
        ("llava_json_bbox_key", 1),
        ("llava_box_outside", 0),
    ],
)
def test_converted_answers_keep_no_raw_pixels(name: str, boxes: int) -> None:
    folder = CASES / name
    dropped = Dropped()
    samples = list(llava.read(folder / "x.json", Pictures(folder / "img", dropped=dropped), codec="qwen2_5_vl"))
    assert [len(sample.regions) for sample in samples] == ([boxes] if boxes else [])
    assert not any("bbox" in sample.turns[-1].text for sample in samples)
    assert sum(dropped.values()) == (not boxes)  # left out, counted, with its reason


def test_converted_boxes_may_be_pixels_of_the_resized_picture(tmp_path: Path) -> None:
    """1600 x 1200 becomes 1148 x 840 under 28 * 28 * 1280 pixels."""
    Image.new("RGB", (1600, 1200)).save(tmp_path / "a.jpg")
    turns = [
        {"from": "human", "value": "<image>\nWhere?"},
        {"from": "gpt", "value": '{"bbox_2d": [574, 210, 1148, 840]}'},
    ]
    (tmp_path / "x.json").write_text(json.dumps([{"id": 1, "image": "a.jpg", "conversations": turns}]))

    def box(**options: Any) -> Any:
        return next(iter(llava.read(tmp_path / "x.json", Pictures(tmp_path), **options))).regions[0].box

    assert box(codec="qwen2_5_vl", max_pixels=28 * 28 * 1280) == pytest.approx((0.5, 0.25, 1.0, 1.0))
    assert box(codec="qwen2_5_vl") == pytest.approx((574 / 1600, 210 / 1200, 1148 / 1600, 840 / 1200))
    with pytest.raises(ValueError, match="--max_pixels: seen with codec scout, expected qwen2_5_vl"):
        box(codec="scout", max_pixels=1)
