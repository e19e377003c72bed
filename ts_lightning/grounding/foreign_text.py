"""Words of strangers (captions, names, answers, file names) in files that other programs open, so that nothing acts.

For HTML there is `html.escape`.
"""

import re
from html import unescape
from typing import Any

_MARKS = re.compile(r"([\\`*\[\]!|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # inside a word it is an underscore
_FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20]|[\t\r\n]")


def markdown_text(value: Any) -> str:
    """One line that Markdown shows as it is written here: no tag, link, picture, code or new cell of a table."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", line)


def shown(text: str) -> str:
    """What Markdown shows of a `markdown_text`: the line that it was made of."""
    return unescape(re.sub(r"\\([\\`*\[\]!|_])", r"\1", text))


def markdown_code(value: Any) -> str:
    """One line as code, also inside a table; a backtick would end it and becomes an apostrophe."""
    return "`" + (" ".join(str(value).split()).replace("`", "'").replace("|", "\\|") or " ") + "`"


def table_cell(value: Any) -> str:
    """A cell of a CSV or TSV file that no spreadsheet takes for a formula.

    An apostrophe stands before what begins with = + - @ (in their wide forms too), a tab or a line break. The rest of
    the text is as it was, and so is every other cell.
    """
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) else text


def visible(value: Any) -> str:
    """One line of printable characters: line breaks, tabs, a terminal's commands and unseen marks are escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value))
