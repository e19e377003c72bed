"""Answers of a few words: how VQAv2, TextVQA and GQA clean them, and what one is worth."""

import re
from collections.abc import Sequence

_UP_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(i) for i, word in enumerate(_UP_TO_TEN)}}
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # the official code passes re.UNICODE (32) where re.sub takes a count: later periods stay

_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_TWO_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
"""
_ODD = {
    "somebody'd": "somebodyd",
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
}


def _contractions() -> dict[str, str]:
    """VQA's list: a form that lacks one apostrophe, and the right one. Its capital forms (Im, Ive) can't be met."""
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, last = word.index("'"), word.rindex("'")
        table[word[:first] + word[first + 1 :]] = table[word[:last] + word[last + 1 :]] = word
    return table | _ODD


_CONTRACTIONS = _contractions()


def vqav2_normalise(text: str) -> str:
    """An answer as VQAv2's evaluation cleans it: punctuation, lower case, number words, articles, contractions.

    Of a mark that touches a blank anywhere in the text, or where the text has a comma between digits, every one is
    deleted; otherwise it becomes a blank. Apostrophes and colons stay; a period goes unless a digit follows.
    """
    return _by_word(_without_marks(_one_line(text)))


def textvqa_normalise(text: str) -> str:
    """An answer as TextVQA's M4C evaluator cleans it: every "," and "?" goes and "'s" stands apart, then as VQAv2."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _by_word(_without_marks(_one_line(text)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    out, digits = text, _DIGIT_COMMA.search(text) is not None
    for mark in _MARKS:
        out = out.replace(mark, "" if digits or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out, count=_PERIODS)


def _by_word(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(text: str, answers: Sequence[str]) -> float:
    """Our form of VQAv2's soft accuracy: the mean over leaving out one annotator of min(1, equal others / 3).

    Answers are always normalised. One accepted answer alone has no others: 1 or 0.
    """
    return _soft(vqav2_normalise(text), [vqav2_normalise(answer) for answer in answers])


def vqav2_score(text: str, answers: Sequence[str]) -> float:
    """VQAv2's soft accuracy as its evaluation gives it (`vqaEval.py`), with its oddity.

    Where all annotators wrote the same, nothing is normalised: "Yes" is wrong where ten said "yes".
    """
    raw = [_one_line(answer) for answer in answers]
    return _soft(_one_line(text), raw) if len(raw) > 1 and len(set(raw)) == 1 else vqa_score(text, answers)


def textvqa_score(text: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy by the M4C evaluator (mmf, LLaVA): VQAv2's soft rule over `textvqa_normalise`."""
    return _soft(textvqa_normalise(text), [textvqa_normalise(answer) for answer in answers])


def _soft(said: str, accepted: Sequence[str]) -> float:
    if len(accepted) == 1:
        return float(said == accepted[0])
    equal = sum(answer == said for answer in accepted)
    agreeing, others = equal * min(1.0, (equal - 1) / 3), (len(accepted) - equal) * min(1.0, equal / 3)
    return (agreeing + others) / len(accepted)


def gqa_score(text: str, answers: Sequence[str]) -> float:
    """GQA's equality (`eval.py`) of an answer as LLaVA hands it in: lower case, without periods at its end.

    The accepted answers are cleaned alike; GQA's own are clean.
    """
    said = text.strip().rstrip(".").lower()
    return float(any(said == answer.strip().rstrip(".").lower() for answer in answers))
