"""Answers that join and leave a running batch are those of one question after the other."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ts_lightning.data.collate import collate
from ts_lightning.grounding.answer import read_answer
from ts_lightning.models import VLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.continuous import Batch, Writing
from ts_lightning.models.generate import generate_answers
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import sample_scene
from ts_lightning.runs.ask import sample_of

QUESTIONS = [
    "What color is the star?",
    "Describe the image.",
    "How many objects are there? Think about each of them before you answer, in one or two short sentences.",
    "Find the star and answer with its box.",
    "Is there a ring?",
    "What shape is red? Answer step by step, and give boxes.",
]
TOKENS = 24


@pytest.fixture(scope="module")
def twins() -> TwinExpertVLM:
    vlm = TwinExpertVLM(TinyBackbone())
    with torch.no_grad():
        for parameter in vlm.trainable_state_dict().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    return vlm.eval()


def rows(vlm: VLM) -> list[dict[str, Any]]:
    made = []
    for number, question in enumerate(QUESTIONS):
        pictures = [jpeg(render(sample_scene(number + i))) for i in range(number % 3)]  # none, one, two
        task = "grounding" if number % 2 else "understanding"
        made.append(vlm.encode(sample_of(pictures, question, task), True, task))
    return made


def text(vlm: VLM, one: Writing) -> str:
    return vlm.tokenizer.decode(one.tokens, skip_special_tokens=False).strip()


def written(vlm: VLM, waves: Sequence[tuple[int, Sequence[int]]], size: int, **how: Any) -> list[Writing]:
    """The answers to `rows` that join in waves (after so many steps, these rows)."""
    batch, encoded = Batch(vlm, size), rows(vlm)
    found = [Writing(TOKENS, **how) for _ in encoded]
    waves, steps = list(waves), 0
    while waves or batch.active:
        while waves and (waves[0][0] <= steps or not batch.active) and len(waves[0][1]) <= batch.room:
            _, joining = waves.pop(0)
            batch.join(collate([encoded[i] for i in joining], vlm.pad_id, "left"), [found[i] for i in joining])
        batch.step()
        steps += 1
        assert steps < 500
    return found


@pytest.mark.parametrize(
    ("size", "waves"),
    [
        (1, [(0, [i]) for i in range(6)]),
        (6, [(0, range(6))]),
        (6, [(0, [0, 1]), (3, [2]), (4, [3, 4]), (9, [5])]),  # longer than those before, and shorter
        (2, [(i, [i]) for i in range(6)]),  # into the places of those that have ended
    ],
    ids=["alone", "together", "waves", "places"],
)
def test_answers_are_those_of_one_after_the_other(twins: TwinExpertVLM, size: int, waves: Any) -> None:
    expected = [generate_answers(twins, collate([row], twins.pad_id, "left"), TOKENS)[0] for row in rows(twins)]
    assert len({answer.cut_off for answer in expected}) == 2  # some end by themselves
    found = written(twins, waves, size)
    assert [(text(twins, one), one.ended == "length") for one in found] == [tuple(answer) for answer in expected]


def test_a_question_alone_has_the_bits_of_the_base(twins: TwinExpertVLM) -> None:
    base = PlainVLM(TinyBackbone(), train=[]).eval()
    logps = []
    for vlm in (twins, base):
        batch, one = Batch(vlm), Writing(TOKENS, top=2)
        batch.join(collate([rows(vlm)[2]], vlm.pad_id, "left"), [one])
        while batch.active:
            batch.step()
        logps.append(one.likely)
    assert logps[0] == logps[1]
    first = logps[0][0]
    assert first.top[0][1] == first.logp  # greedy
    assert first.top[0][1] > first.top[1][1]


def test_who_leaves_makes_room_and_changes_nothing_for_the_others(twins: TwinExpertVLM) -> None:
    batch, encoded = Batch(twins, 3), rows(twins)[1:4]
    found = [Writing(TOKENS) for _ in encoded]
    batch.join(collate(encoded, twins.pad_id, "left"), found)
    assert batch.room == 0
    batch.step()
    found[1].ended = "left"
    batch.step()
    assert (batch.room, len(found[1].tokens)) == (1, 1)
    while batch.active:
        batch.step()
    alone = written(twins, [(0, [1, 3])], 2)
    assert [text(twins, found[i]) for i in (0, 2)] == [text(twins, alone[i]) for i in (1, 3)]


@pytest.mark.parametrize(("codec", "why"), [("scout", "left"), ("molmo", "constrain: seen codec molmo")])
def test_who_ends_before_its_first_token_ends_nobody_else(codec: str, why: str) -> None:
    """Its client has gone while its prompt was read, or boxes can't be asked for."""
    vlm = TwinExpertVLM(TinyBackbone(codec=codec)).eval()
    batch, encoded = Batch(vlm, 2), rows(vlm)[3:5]
    found = [Writing(TOKENS, constrain=(96, 96) if codec == "scout" else None), Writing(TOKENS, constrain=(96, 96))]
    batch.join(collate(encoded, vlm.pad_id, "left"), found)
    found[1].ended = why if why == "left" else ""
    batch.step()
    assert found[1].ended.startswith(why)
    assert (batch.active, len(found[0].tokens)) == ([found[0]], 1)
    batch.clear()
    assert batch._constraint is not None
    assert not batch._constraint.notations  # the rows of those that were written are forgotten, too


def test_columns_that_nobody_needs_are_dropped(twins: TwinExpertVLM) -> None:
    batch, row, said = Batch(twins, 2), rows(twins)[0], torch.tensor([100])
    for _ in range(20):  # always one older and one younger
        batch.join(collate([row], twins.pad_id, "left"), [Writing(TOKENS, sampler=lambda logits, rows: said)])
        for _ in range(TOKENS // 2):
            batch.step()
    assert batch._state is not None
    columns = batch._state.branch_BT.shape[1]
    assert batch._state.cache.get_seq_length() == columns
    assert columns < 2 * (len(row["input_ids"]) + TOKENS) + 64


def test_begun_boxes_are_finished(twins: TwinExpertVLM) -> None:
    free, bound = written(twins, [(0, range(6))], 6), written(twins, [(0, [3, 5]), (2, [1, 0])], 6, constrain=(96, 96))
    for one in (bound[i] for i in (0, 1, 3, 5)):
        assert not read_answer(text(twins, one), twins.codec, [(96, 96)]).rejected
    assert [text(twins, one) for one in bound[:1]] == [text(twins, one) for one in free[:1]]
