"""The words of a caption as COCO's caption scorers count them."""

import re

_SAME = str.maketrans({"\u2018": "'", "\u2019": "'", "\u00b4": "'", "\u20ac": "$", "\u00a3": "#"})
_SAME |= str.maketrans(dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"') | dict.fromkeys("\u2013\u2014", "--"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = frozenset(("''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_ABBREVIATIONS = """
mr mrs ms dr st jr sr prof gen lt col sgt capt rev gov sen rep inc co corp ltd bros vs etc ft no
jan feb mar apr jun jul aug sep sept oct nov dec ave blvd rd mt u.s
"""
_TOKEN = re.compile(
    r"\.{2,}|\u2026|-{2,}|[?!]{2,}"
    r"|'(?:s|m|d|re|ve|ll)(?!\w)|n't(?!\w)"
    r"|(?:[a-z]\.){2,}"  # u.s.a., p.m.
    rf"|\b(?:{'|'.join(_ABBREVIATIONS.split())})\.(?=\s+[a-z0-9]|\s*$)"
    r"|'(?:n'|til\b|em\b|[0-9]0s\b)"
    r"|'t(?=was\b|is\b)|y'(?=all\b)|<\w+>|c(?:\+\+|#)|@\w+"
    r"|[-+]?(?:\d+(?:[.,:/]\d+)+|\.\d+)(?![\w-])|[-+]\d+(?![\w-])|\d+(?::\d+)+(?=[a-z])"
    r"|\w+(?:[-/&.@_]\w+|(?<=\b[odlj])'\w+)*"
    r"|\S"
)
_RUN = re.compile(r"\.{2,}|-{2,}|\u2026")
_CLITIC = re.compile(r"'(?:s|m|d|re|ve|ll)(?!\w)")
_NOT = re.compile(r"(?<=\w)n't(?!\w)")
_JOINED = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"}
_JOINED |= {"lemme": "lem me", "y'all": "y' all"}


def ptb_words(text: str) -> list[str]:
    """Words as Stanford's PTBTokenizer in lower case gives them, without the punctuation that COCO's scorers drop.

    "A dog's bowl, isn't it?" is a, dog, 's, bowl, is, n't, it; hyphens inside words stay, brackets become -lrb-, -rrb-.
    An approximation by hand: web addresses, smileys and rarer abbreviations can differ.
    """
    text = _NOT.sub(" n't", _CLITIC.sub(r" \g<0>", text.lower().translate(_SAME)))
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        words += _JOINED.get(match[0], _BRACKETS.get(match[0], match[0])).split()
    return [word for word in words if word not in _DROPPED and not _RUN.fullmatch(word)]
