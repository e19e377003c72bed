"""Pictures of answers: sizes, and boxes where they belong."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from ts_lightning.reports.drawing import (
    STEP_COLORS,
    TRUE_COLOR,
    Picture,
    _panel,
    contact_sheet,
    draw_boxes,
    draw_picture,
)

GREY = Image.new("RGB", (96, 72), (128, 128, 128))
ANSWER = "Step 1: Find the man [[10,10,50,90]]. Step 2: So the answer is orange."


def extent(image: Image.Image, color: str) -> list[int]:
    """x1, y1, x2, y2 of the pixels of exactly this colour."""
    ys, xs = np.nonzero((np.asarray(image) == ImageColor.getrgb(color)).all(axis=2))
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_boxes_lie_on_the_edges() -> None:
    drawn = draw_boxes(GREY, [[(0.1, 0.1, 0.4, 0.5)], [(0.5, 0.5, 0.9, 0.9)]], [(0.25, 0.25, 0.75, 0.75)], width=400)
    assert drawn.size == (400, 300)
    assert np.abs(np.array(extent(drawn, STEP_COLORS[0])) - [40, 30, 160, 150]).max() <= 2
    assert np.abs(np.array(extent(drawn, STEP_COLORS[1])) - [200, 150, 360, 270]).max() <= 2
    assert np.abs(np.array(extent(drawn, TRUE_COLOR)) - [100, 75, 300, 225]).max() <= 2


def test_a_small_image_is_scaled_up_and_stays_whole() -> None:
    picture = draw_picture(
        Picture(GREY, "Who wears a hat?", ANSWER, [[(0.1, 0.1, 0.5, 0.9)], []], note="IoU 0.50"), width=96
    )
    assert picture.width == 320
    assert picture.height > 240 + 60


def test_tiny_and_edge_boxes_do_not_fail() -> None:
    draw_boxes(GREY, [[(0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0)]], [(0.999, 0.999, 1.0, 1.0)])


def test_long_words_are_cut_and_empty_answers_named() -> None:
    tall = draw_picture(Picture(GREY, "x" * 2000, "")).height
    assert tall < 240 + 400
    assert tall > draw_picture(Picture(GREY, "x", "")).height


@pytest.mark.parametrize("thought", ["It is a man. " * 90, "x" * 20000 + " "], ids=["words", "a word"])
def test_a_long_answer_keeps_its_beginning_and_the_box_that_counts(thought: str) -> None:
    said = f"Step 1: {thought}Step 2: Look. {thought}So [[11,22,33,44]]. " + "It is so. " * 90
    at = said.index("[[")
    lines = [line for line, *_ in _panel(Picture(GREY, "Where?", said, [[], [(0.1, 0.2, 0.3, 0.4)]], at=at), 336)]
    second = next(i for i, line in enumerate(lines) if line.startswith("Step 2: Look."))
    assert len(lines) == 1 + 8 + 8  # the question and two steps
    assert "[[11,22,33,44]]" not in " ".join(lines[:second])
    assert "[[11,22,33,44]]" in " ".join(lines[second:])
    assert lines[second + 3] == lines[-1] == "..."
    unread = [line for line, *_ in _panel(Picture(GREY, "", thought * 2 + "the end", at=len(thought) * 2 + 7), 336)]
    assert unread[-1].endswith("the end")


def test_sheet_holds_all_pictures() -> None:
    pictures = [Picture(GREY, "Where?", "[[1,1,9,9]]", [[(0.01, 0.01, 0.09, 0.09)]]) for _ in range(5)]
    sheet, single = contact_sheet(pictures, columns=3, width=320), draw_picture(pictures[0], 320)
    assert sheet.width == 3 * (single.width + 12) + 12
    assert 2 * single.height < sheet.height < 2 * single.height + 100
    with pytest.raises(ValueError, match="seen no picture"):
        contact_sheet([])
