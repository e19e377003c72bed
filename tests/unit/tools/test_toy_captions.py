"""Captions with boxes of the toy world: the COCO file and what counts as wholly right, by hand."""

import pytest

from tools.experiments.toy_captions import CLASSES, coco, numbered, whole, words
from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn

BOX = (0.1, 0.2, 0.5, 0.4)


@pytest.fixture
def truth():
    regions = [SampleRegion(category="circle", box=BOX), SampleRegion(category="kite", box=BOX)]
    turns = [Turn("user", "<image>\nCaption."), Turn("assistant", "a {region:0} and a {region:1}.")]
    images = [SampleImage("a.jpg", 100, 50)]
    sample = Sample(id="a", key="a", source="t", task="grounding", subtask="caption", images=images, turns=turns)
    sample.regions = regions
    return coco(numbered([sample]))


def test_boxes_are_pixels_with_width_and_height(truth):
    assert [one["bbox"] for one in truth["annotations"]] == [pytest.approx([10, 10, 40, 10])] * 2
    assert [truth["categories"][one["category_id"] - 1]["name"] for one in truth["annotations"]] == ["circle", "kite"]


@pytest.mark.parametrize(
    ("pairs", "right"),
    [
        ([("blue kite", BOX), ("circle", BOX)], True),
        ([("blue kite", BOX)], False),  # one is missing
        ([("kite", BOX), ("circle", BOX), ("circle", BOX)], False),  # one twice
        ([("kite", BOX), ("square", BOX)], False),
        ([("kite", BOX), ("circle", (0.1, 0.2, 0.29, 0.4))], False),  # IoU 0.19 / 0.4
    ],
)
def test_a_caption_is_whole_with_every_object_and_nothing_else(truth, pairs, right):
    assert whole({"image_id": 1, "size": [100, 50], "pairs": pairs}, truth) is right


def test_names_go_to_the_class_that_they_say():
    hot = words(["a small red circle", "red", "kite"])
    assert hot.argmax(1).tolist()[0] == CLASSES.index("circle")
    assert hot.sum(1).tolist() == [1.0, 0.0, 1.0]
