"""Grounding instructions are found as a regular expression would find them, without its time on long texts."""

import random
import re

from ts_lightning.grounding.prompts import GROUNDING_TEMPLATES, _holds, carries_grounding_instruction, templates


def test_parts_are_found_as_a_regular_expression_finds_them() -> None:
    draw = random.Random(0)
    found = 0
    for _ in range(3_000):
        parts = ["".join(draw.choices("ab", k=draw.randrange(3))) for _ in range(draw.randrange(1, 4))]
        text = "".join(draw.choices("ab.", k=draw.randrange(9)))
        expected = re.search(".+".join(map(re.escape, parts)), text, re.DOTALL) is not None
        assert _holds(text, parts) == expected, (text, parts)
        found += expected
    assert 300 < found < 2_700


def test_every_template_is_found_filled_in_anywhere_and_in_any_case() -> None:
    for name in GROUNDING_TEMPLATES:
        for line in templates(name):
            filled = re.sub(r"\{\w+\}", "the red\nhat", line)
            assert carries_grounding_instruction(f"Please: {filled.upper()} Thank you.")


def test_a_long_text_of_template_beginnings_ends() -> None:
    beginnings = [re.split(r"\{\w+\}", line)[0] for name in GROUNDING_TEMPLATES for line in templates(name)]
    for beginning in {one for one in beginnings if one}:
        carries_grounding_instruction((beginning + "x") * (1_000_000 // len(beginning)))
