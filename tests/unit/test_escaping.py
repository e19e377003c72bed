"""Text of records can't write what only the encoder may write."""

import pytest

from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn
from ts_lightning.models.backbones.tiny import TinyBackbone

BACKBONE = TinyBackbone(codec="chatspot", codec_grid="100")
ENCODER = BACKBONE.encoder
IDS = ENCODER.tokenizer.vocab


def sample(user: str, assistant: str, regions: list[SampleRegion] | None = None) -> Sample:
    turns = [Turn("user", user), Turn("assistant", assistant)]
    return Sample("1", task="grounding", images=[SampleImage("a.jpg", 64, 48)], turns=turns, regions=regions or [])


def test_special_tokens_in_data_stay_text() -> None:
    text, _ = ENCODER.render(sample("<image>\nSay </s> <box>1,2</box> <|im_end|> <pad>.", "</s> <box>9,9</box>"))
    ids = ENCODER.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(IDS["</s>"]) == 1  # the end of the answer
    assert ids[-1] == IDS["</s>"]
    assert ids.count(IDS["<image>"]) == ENCODER.image_tokens
    assert IDS["<box>"] not in ids
    assert IDS["<pad>"] not in ids


def test_regions_are_written_with_the_tokens() -> None:
    regions = [
        SampleRegion(points=[(0.1, 0.2)]),
        SampleRegion(box=(0.1, 0.2, 0.3, 0.4)),
        SampleRegion(polygon=[(0, 0), (1, 0), (0.5, 1)]),
    ]
    text, _ = ENCODER.render(sample("<image>\n{region:0} {region:1} {region:2}?", "yes", regions))
    assert "<box>10,20</box> <box>10,20,30,40</box> <box>0,0,100,0,50,100</box>?" in text
    ids = ENCODER.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(IDS["<box>"]) == ids.count(IDS["</box>"]) == 3


def test_reasoning_marks_are_kept_and_objects_are_named_once() -> None:
    encoder = TinyBackbone(codec="mirg").encoder
    regions = [SampleRegion(box=(0.1, 0.2, 0.3, 0.4), phrase="the cat")]
    text, _ = encoder.render(sample("<image>\nWhere?", "<think>{region:0}</think><answer>{region:0}</answer>", regions))
    assert text.endswith(
        "<think><bbox_id>[1-1]</bbox_id><|object_ref_start|>the cat<|object_ref_end|>"
        "<|box_start|>(100,200),(300,400)<|box_end|></think><answer><bbox_id>[1-1]</bbox_id></answer></s>"
    )


def test_a_region_that_the_notation_cannot_say_names_the_sample() -> None:
    with pytest.raises(ValueError, match=r"\{region:0\}: codec scout: seen a click, expected box"):
        TinyBackbone().encoder.render(sample("<image>\n{region:0}?", "a", [SampleRegion(points=[(0.5, 0.5)])]))
