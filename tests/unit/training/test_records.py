"""Which question counts in which metric, with numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.metrics.suites import SuiteMetrics
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.training.records import answer_lengths, batch_records, record_of

CODEC = get_codec("scout")
BOX = (0.1, 0.1, 0.5, 0.5)


def sample(kind: str, text: str, answer: Answer | None, **fields: object) -> Sample:
    task = "understanding" if kind == "colour" else "grounding"
    turns = [Turn("user", "<image>\nWhere?"), Turn("assistant", text)]
    images = [SampleImage("a.jpg", 200, 100)]
    regions = [SampleRegion(box=BOX, area_px=500.0)]
    return Sample(
        id=kind, key=kind, task=task, subtask=kind, images=images, turns=turns, regions=regions, answer=answer, **fields
    )


REC = sample("rec", "{region:0}", Answer(None, [0]))
COLOUR = sample("colour", "red", Answer("red"))
CAPTION = sample("caption", "a dog {region:0}.", Answer(None, [0]))
UNSCORED = sample("colour", "A long caption.", None)
COT = sample("scout", "Step 1: Find it {region:0}. Step 2: So the answer is red.", Answer("red"), tags=["cot"])
NEGATIVE = sample(
    "negative", "There is a dog {region:0}, not a cat. This question is invalid.", Answer(), tags=["negative"]
)


def scores(*pairs: tuple[Sample, str, bool]) -> dict[str, float]:
    metrics = SuiteMetrics()
    batch = {"samples": [s for s, _, _ in pairs], "row_valid": torch.tensor([valid for _, _, valid in pairs])}
    metrics.update("toy", batch_records(batch, [text for _, text, _ in pairs], CODEC, "toy"))
    return metrics.compute(torch.device("cpu"))


def test_boxes() -> None:
    found = scores(
        (REC, "[[10,10,50,50]]", True),  # IoU 1
        (REC, "[[10,10,50,40]] or [[0,0,1,1]]", True),  # IoU 3/4, the first of several counts
        (REC, "no idea", True),  # 0
        (REC, "[[10,10,50,50]]", False),  # padding
    )
    assert found["toy/miou"] == pytest.approx(1.75 / 3)
    assert found["toy/acc50"] == pytest.approx(2 / 3)
    assert found["toy/unparsed"] == pytest.approx(1 / 3)
    assert found["toy/several"] == pytest.approx(1 / 3)
    assert found["toy/rec/miou"] == found["toy/miou"]
    assert not any("medium" in key or "large" in key for key in found), "500 pixels are small"


def test_words() -> None:
    found = scores((COLOUR, "Red.", True), (COLOUR, "blue", True), (UNSCORED, "anything", True))
    assert found == {f"toy/{name}": v for name, v in (("accuracy", 0.5), ("cut_off", 0.0))} | {
        f"toy/colour/{name}": v for name, v in (("accuracy", 0.5), ("cut_off", 0.0))
    }


def test_captions_are_no_box_questions() -> None:
    assert scores((CAPTION, "a dog [[10,10,50,50]].", True)) == {"toy/cut_off": 0.0, "toy/caption/cut_off": 0.0}


def test_steps_and_rejections() -> None:
    found = scores(
        (COT, "Step 1: Find it [[10,10,50,50]]. Step 2: So the answer is red.", True),
        (COT, "Step 1: Find it [[90,90,95,95]]. Step 2: So the answer is blue.", True),
        (NEGATIVE, "There is a dog [[10,10,50,50]] in the image. This question is invalid.", True),
    )
    assert found["toy/answer_acc"] == 0.5
    assert found["toy/step_precision"] == found["toy/step_recall"] == pytest.approx(2 / 3)
    assert (found["toy/rejection_rate"], found["toy/false_rejection_rate"]) == (1.0, 0.0)
    assert "toy/miou" not in found


def test_cut_answers_are_counted_once() -> None:
    metrics = SuiteMetrics()
    cut = [record_of(one, "red", CODEC, "toy", cut_off=one is COT) for one in (COT, REC, COLOUR, CAPTION)]
    metrics.update("toy", cut)
    assert metrics.compute(torch.device("cpu"))["toy/cut_off"] == 0.25


def test_reset_forgets() -> None:
    metrics = SuiteMetrics()
    metrics.update("toy", [record_of(COLOUR, "red", CODEC, "toy")])
    metrics.reset()
    assert metrics.compute(torch.device("cpu")) == {}


def test_a_record_holds_question_answer_and_truth() -> None:
    record = record_of(REC, "[[10,10,50,30]] and [[0,0,100,100]]", CODEC, "val", cut_off=True)
    assert (record.suite, record.key, record.question, record.task, record.cut_off) == (
        *("val", "rec", "Where?", "grounding", True),
    )
    assert [thing.box for thing in record.answer.objects] == [(0.1, 0.1, 0.5, 0.3), (0.0, 0.0, 1.0, 1.0)]
    assert (record.truth.box, record.truth.area_px, record.truth.answers) == (BOX, 500.0, ())
    values = record.to_json()
    assert (values["parse_status"], values["box"], values["box_px"]) == (
        *("several", (0.1, 0.1, 0.5, 0.3), [20, 10, 100, 30]),
    )


def test_questions_of_a_record_share_its_pictures() -> None:
    keys = ("a#0", "a#12", "a", "b")
    assert [record_of(replace(REC, key=key), "", CODEC, "s").pictures for key in keys] == ["a", "a", "a", "b"]


def test_boxes_are_in_pixels_of_the_picture_that_they_lie_on() -> None:
    two = [SampleImage("a.jpg", 200, 100), SampleImage("b.jpg", 50, 80)]
    second = replace(REC, images=two, regions=[SampleRegion(box=BOX, image=1)])
    record = record_of(second, "[[10,10,50,50]]", CODEC, "toy")
    assert (record.size, record.truth.image) == ((50, 80), 1)
    assert record.to_json()["box_px"] == [5.0, 8.0, 25.0, 40.0]
    named = record_of(second, "Image-1: [[10,10,50,50]]", CODEC, "toy")
    assert named.to_json()["box_px"] == [20.0, 10.0, 100.0, 50.0]


def test_an_understanding_question_asks_no_box() -> None:
    values = record_of(COLOUR, "red [[1,2,3,4]]", CODEC, "val").to_json()
    assert (values["parse_status"], values["box"], values["truth"]["answers"]) == ("not_asked", None, ("red",))


def test_a_true_answer_is_as_long_as_its_row_has_it() -> None:
    """A token of a skill is several in an answer of the base."""
    vlm = TwinExpertVLM(TinyBackbone(), new_tokens=["<part>"])
    said = replace(COLOUR, turns=[Turn("user", "What is it?"), Turn("assistant", "a <part> of it")], images=[])
    for one in (said, replace(said, task="grounding")):
        expected = int((vlm.encode(one)["step_ids"] >= 0).sum())
        assert answer_lengths(vlm.encoder, [one]) == [expected]


def test_padding_rows_give_no_record() -> None:
    batch = {"samples": [REC, REC], "row_valid": torch.tensor([True, False])}
    assert len(batch_records(batch, ["", ""], CODEC, "val")) == 1
