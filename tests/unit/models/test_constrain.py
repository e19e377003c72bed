"""Constrained decoding: a begun box is finished in the codec's notation, whatever the weights say.

    python -m tests.unit.models.test_constrain 10000

takes so many answers for each codec and each tokenizer.
"""

import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.models.test_public_folders import byte_level
from tests.unit.models.test_shared_prefix import tiny
from ts_lightning.grounding.codecs import CODECS, get_codec
from ts_lightning.models.constrain import Constraint, Notation, Place

SIZE, LENGTH = (97, 64), 60
BOXES = sorted(name for name, codec in CODECS.items() if "box" in codec.kinds)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
         "<|box_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]  # fmt: skip


@cache
def tokenizer_of(kind: str) -> Any:
    """The tiny base's, or a byte-level one with Qwen's marks."""
    if kind == "tiny":
        return tiny().encoder.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        return byte_level(Path(folder), MARKS, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def answers(name: str, count: int, kind: str = "tiny", seed: int = 0) -> tuple[int, list[str]]:
    """Random answers with many openings: how many boxes were begun, and the texts that hold one not read strictly."""
    tokenizer, codec = tokenizer_of(kind), get_codec(name)
    vocabulary, eos = len(tokenizer), tokenizer.eos_token_id
    notation = Notation(codec, SIZE)
    constraint = Constraint(tokenizer, codec, [SIZE] * count, vocabulary, {eos})
    generator = torch.Generator().manual_seed(seed)
    opening = tokenizer(notation.opening, add_special_tokens=False)["input_ids"]
    rows, ids = list(range(count)), [[] for _ in range(count)]
    for step in range(LENGTH):
        logits = torch.randn(count, vocabulary, generator=generator)
        logits[:, eos] = -torch.inf  # an answer of full length, cut off by the limit
        for row in rows:  # what would begin one is likely
            place = step % (len(opening) + 9)
            if place < len(opening):
                logits[row, opening[place]] += 12
        allowed = constraint.allowed(rows, LENGTH - step - 1)
        tokens = logits.masked_fill(~allowed, -torch.inf).argmax(1).tolist()
        constraint.read(tokens, rows)
        for row, token in enumerate(tokens):
            ids[row].append(token)
    begun, wrong = 0, []
    for row in rows:
        text = tokenizer.decode(ids[row], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        at = text.find(notation.opening)
        while at >= 0:
            begun += 1
            found = notation.go_on(Place(), text, at + len(notation.opening))
            if found is None or found[0] is not None or len(codec.parse_strict(text[at : found[1]], SIZE)) != 1:
                wrong.append(text)
                break
            at = text.find(notation.opening, found[1])
    return begun, wrong


@pytest.mark.parametrize("kind", ["tiny", "qwen"])
@pytest.mark.parametrize("name", BOXES)
def test_every_begun_box_reads_strictly(name: str, kind: str) -> None:
    begun, wrong = answers(name, 20, kind)
    assert begun >= 20
    assert wrong == []


def test_the_notation_of_a_codec_by_hand() -> None:
    scout = Notation(get_codec("scout"), SIZE)
    assert (scout.opening, scout.literals) == ("[[", ["", ",", ",", ",", "]]"])
    assert scout.go_on(Place(), "10,20,30,40]]x") == (None, 13)
    for begun in ("", "1", "10,", "10,20,3", "99,0,10", "10,20,30,40]"):
        place, end = scout.go_on(Place(), begun)
        assert (end, place is None) == (len(begun), False), begun
        for cut in range(len(begun)):  # in two steps as in one
            assert scout.read(scout.read(Place(), begun[:cut]), begun[cut:]) == place, (begun, cut)
    # empty and reversed boxes, numbers that are none of the grid, further text
    for none in ("10,20,10", "10,20,10,", "100", "10,20,5,", "01", "101", "a", "10, 20", "10,20,30,40;"):
        assert (scout.go_on(Place(), none) is None) == (none != "10,20,10"), none
    assert scout.read("", "the [[1,2,3,4]] and [[5") == Place(1, "5")
    assert scout.read("", "[[1,2,3,4]] [") == scout.read("", "ends in [") == "["
    assert scout.read("", "[[1,2,3,4]] and [[9,2,3,") is None
    # what later numbers need not fit is no part of a place
    assert scout.read(Place(), "1,2,3,") == scout.read(Place(), "0,2,9,") == Place(7, "", (None, 2.0, None, None))
    qwen = Notation(get_codec("qwen2_vl"), SIZE)
    assert (qwen.opening, qwen.literals) == ("<|box_start|>", ["(", ",", "),(", ",", ")<|box_end|>"])


def test_no_box_is_begun_without_room_and_a_codec_of_points_is_refused() -> None:
    tokenizer = tokenizer_of("tiny")
    constraint = Constraint(tokenizer, get_codec("shikra"), [SIZE], len(tokenizer), {tokenizer.eos_token_id})
    (opening,) = tokenizer("[", add_special_tokens=False)["input_ids"][-1:]
    assert constraint.allowed([0], 100)[0, opening]
    assert not constraint.allowed([0], 5)[0, opening]
    with pytest.raises(ValueError, match="constrain: seen codec molmo, which writes no boxes"):
        Notation(get_codec("molmo"), SIZE)


class Words:
    """A tokenizer of these texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.texts[i] for i in ids]

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(self.convert_ids_to_tokens(ids))


def test_no_box_is_begun_without_room_in_the_token_that_ends_another() -> None:
    words = Words("</s>", "[0.100,0.200,0.300,0.40", "0", "]", "][", "] ")
    constraint = Constraint(words, get_codec("shikra"), [SIZE], len(words), {0})
    constraint.read([1], [0])
    assert constraint.allowed([0], 2)[0].tolist() == [False, False, True, False, False, False]
    constraint.read([2], [0])
    assert constraint.allowed([0], 1)[0].tolist() == [False, False, False, True, False, True]
    assert constraint.allowed([0], 100)[0].tolist() == [False, False, False, True, True, True]


def test_a_picture_too_narrow_for_the_grid_is_one_line() -> None:
    seen = "seen a picture of 2000 x 15 pixels, in which some boxes are written alike by codec shikra"
    with pytest.raises(ValueError, match=f"constrain: {seen}, expected one that is less narrow"):
        Notation(get_codec("shikra"), (2000, 15))


if __name__ == "__main__":
    for codec_name in BOXES:
        for tokenizer_kind in ("tiny", "qwen"):
            total, failures = 0, 0
            for part in range(0, int(sys.argv[1]), 1000):
                count = min(1000, int(sys.argv[1]) - part)
                begun_now, wrong_now = answers(codec_name, count, tokenizer_kind, part)
                total, failures = total + begun_now, failures + len(wrong_now)
            counts = f"{total} boxes begun in {sys.argv[1]} answers, {failures} answers with one not strict"
            print(f"{codec_name}, {tokenizer_kind} tokenizer: {counts}", flush=True)
