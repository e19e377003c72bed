"""Boxes, coordinates, the scout codec, steps."""

import math
import random

import pytest

from ts_lightning.grounding import CoordinateSpace, Region, get_codec
from ts_lightning.grounding.answer import read_answer
from ts_lightning.grounding.boxes import check_box, iou
from ts_lightning.grounding.steps import is_rejection, step_spans

CODEC = get_codec("scout")
STEPS = (
    "Step 1: Find the man [[10,9,79,100]]. Step 2: Check the hat, got the hat [[30,9,79,52]]. "
    "Step 3: The hat [[30,9,79,52]] is orange. Step 4: So the answer is orange."
)


def test_iou_by_hand() -> None:
    assert iou((0, 0, 0.5, 0.5), (0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0.1, 0.1), (0.2, 0.2, 0.3, 0.3)) == 0


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ((0, 0, math.nan, 1), "NaN"),
        ((0.5, 0, 0.4, 1), "reversed"),
        ((0, 0, 1.2, 1), "outside"),
        ((0, 1, 1), "3 numbers"),
    ],
)
def test_bad_boxes_are_named(box: tuple, word: str) -> None:
    with pytest.raises(ValueError, match=f"record-7: .*{word}"):
        check_box(box, "record-7")


@pytest.mark.parametrize("grid", ["100", "1000", "decimals:3", "pixels"])
@pytest.mark.parametrize("frame", ["original", "padded_square", "resized"])
def test_coordinates_return_within_half_a_cell(grid: str, frame: str) -> None:
    space, size, rng = CoordinateSpace(grid, frame, resized=(336, 448)), (640, 360), random.Random(0)
    cells = {"100": 100, "1000": 1000, "decimals:3": 1000, "pixels": 336 if frame == "resized" else 360}[grid]
    stretch = 640 / 360 if frame == "padded_square" else 1  # a padded square spends cells on its bars
    for _ in range(300):
        point = (rng.random(), rng.random())
        back = space.decode(space.encode([point], size), size)[0]
        assert max(abs(a - b) for a, b in zip(point, back, strict=True)) <= 0.5 / cells * stretch + 1e-9


def test_padded_square_by_hand() -> None:
    space = CoordinateSpace("100", "padded_square")
    assert space.encode([(0.0, 0.0), (1.0, 1.0)], (200, 100)) == [0, 25, 100, 75]


def test_scout_text() -> None:
    assert CODEC.format([(0.1, 0.09, 0.79, 1)]) == "[[10,9,79,100]]"
    assert CODEC.format([(0, 0, 0.1, 0.2), (0.3, 0.4, 0.5, 0.6)]) == "[[0,0,10,20;30,40,50,60]]"
    found = CODEC.parse("a [[41,28,54,72]], [[51,9,61,19]] and [[1,2,3,4; 5,6,7,8]]")
    assert [len(one.boxes) for one in found] == [1, 1, 2]
    assert found[2].boxes[1] == (0.05, 0.06, 0.07, 0.08)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[",
        "[[1,2,3]]",
        "[[9,9,1,1]]",
        "[[a,b,c,d]]",
        "[[1,2,3,4",
        "[[\u0661,\u0662,\u0663,\u0664]]",
        "[[,,,]]",
        "[[...,.,.,1]]",
    ],
)
def test_malformed_answers_have_no_box(text: str) -> None:
    assert CODEC.parse(text) == []
    assert read_answer(text, CODEC, []).status == "unparsed"


def test_parsing_is_linear() -> None:
    """A reading that goes back at every bracket would take hours."""
    assert CODEC.parse("[[" * 200_000 + "1,2,3," * 100_000) == []


def test_unknown_codec_lists_the_known() -> None:
    with pytest.raises(ValueError, match="seen 'nope', expected one of chatspot"):
        get_codec("nope")


def test_steps() -> None:
    spans = step_spans(STEPS)
    assert [STEPS[a:b].strip()[:6] for a, b in spans] == ["Step 1", "Step 2", "Step 3", "Step 4"]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(STEPS)
    assert step_spans("[[1,2,3,4]]") == [(0, 11)]
    assert read_answer(STEPS, CODEC, []).words == "orange"


def test_rejection() -> None:
    assert is_rejection("... not a dog. This question is invalid.")
    assert is_rejection("There is a man, not a woman. The question is invalid.")  # TWIST & SCOUT, Figure A.6
    assert not is_rejection(STEPS)


def test_region_kinds() -> None:
    assert [Region(((0.1, 0.2),) * n).kind for n in (1, 2, 3)] == ["click", "box", "polygon"]
    with pytest.raises(ValueError, match="no point"):
        Region(())
