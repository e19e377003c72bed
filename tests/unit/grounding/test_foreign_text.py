"""Words of strangers in Markdown and in tables."""

import pytest

from tests.unit.hostile_texts import FORMULAS, TEXTS, markdown_structure
from ts_lightning.grounding.foreign_text import markdown_code, markdown_text, table_cell, visible


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_shows_it_as_text(text: str) -> None:
    pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    page = "# {0}\n\n| a | b |\n|---|---|\n| {0} | {1} |\n\n- {0}: {1}\n"
    assert markdown_structure(page.format(markdown_text(text), markdown_code(text))) == markdown_structure(
        page.format("plain", "`plain`")
    )


def test_words_without_meaning_stay_as_they_are() -> None:
    assert markdown_text("moe_llava, 0.95 (a-b): 3 - 4 = -1") == "moe_llava, 0.95 (a-b): 3 - 4 = -1"
    assert markdown_text("a | <b>\n[c](d)") == r"a \| &lt;b&gt; \[c\](d)"
    assert markdown_code("a`b\n|") == r"`a'b \|`"
    assert table_cell("A. the cat = 1") == "A. the cat = 1"
    assert table_cell(1000241) == "1000241"


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_begins_no_formula(text: str) -> None:
    cell = table_cell(text)
    assert cell.strip()[0] not in "=+-@\uff1d"
    assert text in cell  # nothing is lost


def test_what_is_not_seen_is_shown() -> None:
    assert visible("a\tb\n\x1b[2J\u202e\ud83d") == r"a\tb\n\x1b[2J\u202e\ud83d"
    assert visible("a dog, 狗 = \\n") == "a dog, 狗 = \\n"
