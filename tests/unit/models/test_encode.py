"""Tokenizer, encoder, packing.

Bitwise: whole numbers.
"""

import copy
import multiprocessing
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tools.experiments.tiny_base.lessons import pack_row, pad_rows
from tools.experiments.tiny_base.tokenizer import MARKUP
from ts_lightning.data.sample import SampleImage, SampleRegion
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.packing import branch_mask
from ts_lightning.pipelines.toy_world.shards import grounding_samples
from ts_lightning.training import SFT

ENCODER = TinyBackbone(pretrained=None, hidden_size=32, num_layers=2, vision_layers=1, num_heads=2).encoder
TOKENIZER = ENCODER.tokenizer


def test_numbers_and_marks_are_one_token() -> None:
    ENCODER.token_ids([*ENCODER.codec.coordinate_tokens(), *MARKUP])
    with pytest.raises(ValueError, match="expected one token"):
        ENCODER.token_ids(["nonsenseword"])


def test_rows_of_the_codec_leave_out_what_is_several_tokens() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    encoder = replace(ENCODER, tokenizer=tokenizer, codec=get_codec("paligemma"))  # <loc0000> is no token here
    with pytest.warns(UserWarning, match="1024 of the 1024 texts of codec paligemma are several tokens"):
        assert encoder.row_tokens(["codec", "[["]) == ["[["]
    assert ENCODER.row_tokens(["codec"]) == list(dict.fromkeys(ENCODER.codec.coordinate_tokens()))
    assert ENCODER.row_tokens(None) == []
    assert not TwinExpertVLM(TinyBackbone(), train_token_rows=None).token_rows


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("A dog {region:0} on the grass.", "A dog {} on the grass."),
        ("{region:0} ; {region:0}", "{} dog ; {} dog"),
    ],
)
def test_labels_of_paligemma_stand_where_they_are_read(text: str, written: str) -> None:
    region = SampleRegion(box=(0.0, 0.0, 1.0, 1.0), phrase="dog")
    sample = SimpleNamespace(key="k", images=[SampleImage("a.jpg", 80, 60)], regions=[region])
    box = "<loc0000><loc0000><loc1023><loc1023>"
    encoder = replace(ENCODER, codec=get_codec("paligemma"))
    assert encoder.expand(text, sample, set()) == written.replace("{}", box)
    assert encoder.expand(text, sample) == text.replace("{region:0}", box)  # questions name no thing


@pytest.mark.parametrize(
    "text", ["Step 1: Find the man [[10,9,79,100]].", "ünïcode ✓", "<|box_start|>(123,4),(5,6)<|box_end|>"]
)
def test_text_survives(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_a_configurations_line_behind_the_question_may_write_marks_but_of_pictures() -> None:
    sample = next(iter(grounding_samples("train", 1, ("rec",))))
    start: int = TOKENIZER.convert_tokens_to_ids("<|box_start|>")
    sample.turns[0].text += " <|box_start|>"
    plain = ENCODER(sample, for_generation=True)["input_ids"].tolist()
    assert start not in plain  # a record's text is escaped
    asked = replace(sample, after_question=" Format:<|box_start|>(x1,y1)")
    assert (ids := ENCODER(asked, for_generation=True)["input_ids"].tolist()).count(start) == 1
    assert TOKENIZER.decode(ids[ids.index(start) :]).replace(" ", "").startswith("<|box_start|>(x1,y1)ASSISTANT:")
    assert "after_question" not in sample.to_json().decode()  # and can't be a record's
    with pytest.raises(ValueError, match="after_question: seen <image>, expected no mark of a picture"):
        ENCODER(replace(sample, after_question=ENCODER.image_token))


def test_steps_and_prompt_have_their_ids() -> None:
    sample = next(s for s in grounding_samples("train", 40, ("scout",)) if len(s.turns[1].steps) == 4)
    row, prompt = ENCODER(sample), ENCODER(sample, for_generation=True)
    length = len(prompt["input_ids"])
    assert torch.equal(row["input_ids"][:length], prompt["input_ids"])
    assert (row["step_ids"][:length] == -1).all()
    answer = row["step_ids"][length:].tolist()
    assert answer == sorted(answer)
    assert set(answer) == {0, 1, 2, 3}
    for step in range(4):
        text = TOKENIZER.decode(row["input_ids"][row["step_ids"] == step])
        assert text.strip().startswith(f"Step {step + 1}:")
    assert row["input_ids"][-1] == TOKENIZER.eos_token_id
    assert (row["input_ids"] == TOKENIZER.convert_tokens_to_ids("<image>")).sum() == ENCODER.image_tokens


def test_a_spawned_worker_gets_the_encoder_and_not_the_model() -> None:
    """As a loader's workers are started where they are not forked (macOS, Windows, Python 3.14)."""
    vlm = TwinExpertVLM(TinyBackbone(), new_tokens=["<loc>"])
    sample = next(iter(grounding_samples("train", 1)))
    encoder, policy = SFT(vlm).encoder, vlm.encoder_for("understanding")
    assert len(pickle.dumps(encoder)) < 0.02 * sum(p.numel() * p.element_size() for p in vlm.parameters())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        row, asked = pool.apply(encoder, (sample,)), pool.apply(policy, (sample, True))
    assert torch.equal(row["input_ids"], vlm.encode(sample)["input_ids"])
    assert (row["task"], asked["task"]) == (1, 0)


def test_long_rows_are_refused() -> None:
    sample = next(iter(grounding_samples("train", 1)))
    sample.turns[1].text = "word " * 3000
    sample.turns[1].steps = None
    seen = rf"{sample.key}.*tokens, expected at most \d+; {ENCODER.image_tokens} are of pictures: .*max_pixels"
    with pytest.raises(ValueError, match=seen):
        ENCODER(sample)


def test_packed_branches_see_prefix_and_self() -> None:
    row = pack_row([1, 2], [([3], [4]), ([5, 6], [7])])
    assert row["position_ids"] == [0, 1, 2, 3, 2, 3, 4]
    batch = pad_rows([row, pack_row([1], [([2], [3])])], pad_id=9)
    mask = branch_mask(batch["branch"])[:, 0].int()
    assert mask[0].tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]
    assert mask[1, 6].tolist() == [0, 0, 0, 1, 1, 1, 1]
