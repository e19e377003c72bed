"""The engine of the page: what is encoded, which path answers, and what is refused."""

import pytest
import torch

from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Sample, SampleImage, Turn
from ts_lightning.grounding.regions import Region
from ts_lightning.models import VLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Batch
from ts_lightning.models.generate import prefill
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.serve.conversation import Conversation, begin, found_boxes, said, task_by_instruction

PICTURE = jpeg(render(sample_scene(11)))
BASE = PlainVLM(TinyBackbone(), train=[]).eval()


def answer(vlm: VLM, talk: Conversation, tokens: int) -> tuple[str, str]:
    """(the task, the answer) of a question alone."""
    begun, batch = begin(vlm, talk, max_new_tokens=tokens), Batch(vlm)
    batch.join(collate([dict(begun.row)], vlm.pad_id, "left"), [begun.writing])
    while batch.active:
        batch.step()
    assert begun.automatic
    return begun.task, said(vlm, begun.writing.tokens)


def moved_twins() -> TwinExpertVLM:
    """Grounding experts that say something else than the base."""
    vlm = TwinExpertVLM(TinyBackbone())
    with torch.no_grad():
        for parameter in vlm.trainable_state_dict().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
    return vlm.eval()


def test_an_understanding_turn_after_a_grounding_turn_is_the_base() -> None:
    twins = moved_twins()
    first = "Find the star and answer with its box."
    task, text = answer(twins, Conversation([PICTURE], [], [first]), 12)
    assert task == "grounding"
    talk = Conversation([PICTURE], [], [first, text, "What color is the circle?"])
    answer(twins, talk, 4)
    batches = [collate([v.encode(talk.sample(v, "understanding"), True)], v.pad_id, "left") for v in (twins, BASE)]
    with torch.no_grad():
        ours, base = (prefill(v, batch).logits_BV for v, batch in zip((twins, BASE), batches, strict=True))
        grounding = collate([twins.encode(talk.sample(twins, "grounding"), True)], twins.pad_id, "left")
        assert not torch.equal(prefill(twins, grounding).logits_BV, base)
    torch.testing.assert_close(ours, base, rtol=1e-6, atol=1e-6)  # two models: weights at two addresses
    assert answer(twins, talk, 6) == answer(BASE, talk, 6)


def test_every_assistant_turn_of_a_conversation_is_trained_on() -> None:
    turns = [Turn("user", "<image>\nWhat color?"), Turn("assistant", "red"), Turn("user", "What shape?")]
    sample = Sample("1", images=[SampleImage("a.jpg", 10, 10)], turns=[*turns, Turn("assistant", "a star")])
    sample.image_bytes = [PICTURE]
    row = BASE.encode(sample)
    tokens = [BASE.tokenizer.decode(row["input_ids"][row["step_ids"] == step]).strip() for step in range(2)]
    assert tokens == ["red</s>", "a star</s>"]
    assert " ASSISTANT: red</s>" in BASE.backbone.encoder.render(sample)[0]
    assert set(row["step_ids"].tolist()) == {-1, 0, 1}


def test_regions_are_named_by_number_and_earlier_boxes_are_said_again() -> None:
    vlm = PlainVLM(TinyBackbone(codec="chatspot", codec_grid="100"), train=[])
    regions = [(0, Region(((0.5, 0.25),))), (0, Region(((0.1, 0.2), (0.3, 0.4))))]
    texts = ["What is in #2 and #1? <image> {region:0}", "It is <box>10,20,30,40</box>.", "And #1?"]
    text, _ = vlm.backbone.encoder.render(Conversation([PICTURE], regions, texts).sample(vlm, "understanding"), True)
    asked, said, again = text.split("<image>" * 36 + "\n")[1].split("</s>")[0].split(" ASSISTANT:")[0], text, text
    assert asked.startswith("What is in <box>10,20,30,40</box> and <box>50,25</box>? <\u200bimage>")
    assert " It is <box>10,20,30,40</box>.</s>" in said
    assert "And <box>50,25</box>?" in again
    with pytest.raises(ValueError, match="seen #3, expected #1 to #2"):
        Conversation([PICTURE], regions, ["What is in #3?"]).sample(vlm, "understanding")
    with pytest.raises(ValueError, match="codec scout: seen a click"):
        begin(BASE, Conversation([PICTURE], regions[:1], ["What is in #1?"]))


def test_a_number_is_text_where_no_region_was_given() -> None:
    sample = Conversation([], [], ["Who wears jersey #7?", "#10.", "And #8?"]).sample(BASE, "understanding")
    assert [turn.text for turn in sample.turns] == ["Who wears jersey #7?", "#10.", "And #8?", ""]


def test_a_task_without_a_package_is_understandings() -> None:
    vlm = TwinExpertVLM(TinyBackbone(), package="counting")
    question = Conversation([], [], ["Where is the star? Answer with a box."])
    assert begin(vlm, question).task == "understanding"  # where the template's answer is grounding
    assert begin(vlm, question, task_of=lambda _: "counting").task == "counting"
    assert begin(BASE, question).task == "understanding"


def test_known_sizes_are_not_read_again() -> None:
    assert Conversation([b"no picture"], sizes=[(20, 10)]).sizes == [(20, 10)]


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        ("Where is the red circle? Answer with a box.", "grounding"),
        ("find the star and answer with its box.", "grounding"),
        ("What color is the star? Think in steps and give boxes.", "grounding"),
        ("Describe the image with boxes.", "grounding"),
        ("Where is the red circle?", "understanding"),
        ("Describe the image.", "understanding"),
        ("How many boxes are there?", "understanding"),
    ],
)
def test_the_instruction_decides_the_task(prompt: str, task: str) -> None:
    assert task_by_instruction(prompt) == task


def test_boxes_know_their_step_and_characters() -> None:
    text = "Step 1: Find the hat [[10,20,30,40]]. Step 2: It [[50,60,70,80]] is red."
    first, second = found_boxes(BASE, text, Conversation([PICTURE]).sizes)
    assert (first["step"], second["step"]) == (0, 1)
    assert text[second["start"] : second["end"]] == "[[50,60,70,80]]"
    assert first["points"] == [[0.1, 0.2], [0.3, 0.4]]
