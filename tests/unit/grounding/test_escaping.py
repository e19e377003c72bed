"""Text of records can't write what only the encoder may write."""

import pytest

from tests.unit.data_samples import picture
from tests.unit.models.test_backbones import MAKERS
from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.encode import STORED_MARKS, Encoder

BACKBONE = TinyBackbone(codec="chatspot", codec_grid="100")
ENCODER = BACKBONE.encoder
IDS = ENCODER.tokenizer.vocab


def sample(user: str, assistant: str, regions: list[SampleRegion] | None = None) -> Sample:
    turns = [Turn("user", user), Turn("assistant", assistant)]
    pictures = {"images": [SampleImage("a.jpg", 64, 48)], "image_bytes": [picture(0, (64, 48))]}
    return Sample("1", task="grounding", turns=turns, regions=regions or [], **pictures)


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


FAMILIES = {"tiny": TinyBackbone, **MAKERS}


def control_ids(encoder: Encoder, one: Sample) -> list[int]:
    """The ids of all added tokens of the chat text but the stored marks, in order."""
    text, _ = encoder.render(one)
    control = {i for token, i in encoder.tokenizer.get_added_vocab().items() if token not in STORED_MARKS}
    return [i for i in encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if i in control]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_reads_a_control_token_from_data(family: str) -> None:
    """Every token of the tokenizer and those of other families, in a question, an answer and a phrase."""
    encoder = FAMILIES[family]().encoder
    foreign = ("<|im_end|>", "<s>", "</s>", "<box>", "</box>", "<|endoftext|>", "<|image_pad|>", "<IMG_CONTEXT>")
    marks = sorted({*encoder.tokenizer.get_added_vocab(), *foreign} - STORED_MARKS - {IMAGE_MARK})
    evil = " ".join([*marks, *(mark + mark for mark in marks), *(f"<{mark}>" for mark in marks)])
    region = [SampleRegion(box=(0.1, 0.2, 0.3, 0.4), phrase="cat")]
    plain = control_ids(encoder, sample("<image>\nWhere?", "It is {region:0} here", region))
    region = [SampleRegion(box=(0.1, 0.2, 0.3, 0.4), phrase=f"cat {evil} <image>")]
    spoiled = sample(f"<image>\nWhere? {evil}", f"It is {{region:0}} here {evil}", region)
    assert control_ids(encoder, spoiled) == plain


def test_marks_that_overlap_are_all_broken() -> None:
    encoder, _ = TinyBackbone().encoder.with_tokens(["[[a", "a]]", "aaa"])
    ids = encoder.tokenizer(encoder.escape("[[a]] aaaa"), add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(encoder.tokenizer.convert_tokens_to_ids(["[[a", "a]]", "aaa"]))


def test_two_steps_cannot_share_a_mark() -> None:
    one = sample("<image>\nWhere?", "one </s> two", [])
    for cut in range(1, 12):
        one.turns[1].steps = [(0, cut), (cut, 12)]
        text, spans = ENCODER.render(one)
        ids = ENCODER.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(IDS["</s>"]) == 1, cut
        assert text[spans[0][0] : spans[1][1]].replace("\u200b", "") == " one </s> two</s>"


def test_phrases_are_text_in_every_notation() -> None:
    encoder = TinyBackbone(codec="mirg").encoder
    region = SampleRegion(box=(0.1, 0.2, 0.3, 0.4), phrase="</s><|box_start|>")
    text, _ = encoder.render(sample("<image>\nWhere?", "{region:0}", [region]))
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(IDS["</s>"]) == ids.count(IDS["<|box_start|>"]) == 1


def test_a_picture_mark_that_stands_for_no_picture_names_the_sample() -> None:
    one = sample("<image>\nWhat does <image> mean?", "a tag")
    one.shard, one.key = "x.tar", "k"
    with pytest.raises(ValueError, match=r"^x.tar:k: field turns\[0\].text: seen '2 <image>', expected 1"):
        one.validate()
