"""The base's knowledge of places, asked for in words."""

from pathlib import Path

import pytest

from ts_lightning.cli.asked_in_words import box_of, in_words, score_in_words
from ts_lightning.data.write import write_shards
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.shards import grounding_samples


def test_two_ranges_are_a_box() -> None:
    assert box_of("four to eight", "Ten to twenty.") == (0.2, 0.5, 0.4, 1.0)
    assert box_of("four to eight", "a square") is None
    assert box_of("eight to four", "zero to one") is None
    assert box_of("four to four", "zero to one") is None


def test_the_question_names_the_object_and_is_one_of_understanding() -> None:
    sample = next(grounding_samples("val", 1, ("rec",)))
    asked = in_words(sample, "down")
    assert asked.task == "understanding"
    assert asked.turns[0].text == f"<image>\nWhat is the range down of {sample.regions[0].phrase}?"


def test_the_untouched_base_says_places_in_words(tmp_path: Path) -> None:
    write_shards(grounding_samples("val", 50, ("localization", "rec")), tmp_path, "val", 50)
    scores = score_in_words(PlainVLM(TinyBackbone(), train=["*"]), f"{tmp_path}/val-*.tar")
    assert scores["acc50"] >= 0.9  # 0.98 on 400 of them
    assert scores["miou"] == pytest.approx(0.8, abs=0.05)  # twentieths allow 0.83
    assert scores["unparsed"] == 0
