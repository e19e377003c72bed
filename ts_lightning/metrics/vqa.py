"""Rules of visual question answering benchmarks: how an answer in words is cleaned, and what it is worth."""

import re
from collections.abc import Sequence


def _split(words: str) -> list[str]:
    return words.split()


_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d", re.ASCII)
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {w: str(i) for i, w in enumerate(_split("zero one two three four five six seven eight nine ten"))}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset(("a", "an", "the"))


def _contractions() -> dict[str, str]:
    """From forms without their apostrophes to the right ones."""
    heads = {
        "n't": _split("ain are could did does do had has have is might must need ought sha should was were wo would"),
        "'d": _split("how it somebody someone something there they where who you"),
        "'ll": _split("how it somebody someone something they what who why you y'a"),
        "'s": _split("he how let she someone somebody that there what when where who why"),
        "'re": _split("there they what who why you"),
        "'ve": _split("could I might must should they we what where who would you"),
        "'m": ["I"],
    }
    right = [head + tail for tail, words in heads.items() for head in words]
    right += ["can't", "ma'am", "o'clock", "'twas", "y'all"]
    table = {word.replace("'", ""): word for word in right}
    double = [f"{w}n't've" for w in _split("could had might should would")]
    double += [f"{w}'d've" for w in _split("he I it she somebody someone something there they we who y'all you")]
    for word in double:
        first, last = word.index("'"), word.rindex("'")
        table[word[:first] + word[first + 1 :]] = table[word[:last] + word[last + 1 :]] = word
    return table


_CONTRACTIONS = _contractions()


def normalise_vqa(text: str) -> str:
    """An answer as VQAv2's evaluation cleans it: punctuation, number words, articles, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    out = text
    digits = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if digits or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(text: str, answers: Sequence[str]) -> float:
    """VQAv2's soft accuracy: the mean over leaving out one annotator of min(1, equal others / 3).

    With one accepted answer it is 1 or 0. TextVQA uses the same rule.
    """
    said, accepted = normalise_vqa(text), [normalise_vqa(answer) for answer in answers]
    if len(accepted) == 1:
        return float(said == accepted[0])
    equal = sum(answer == said for answer in accepted)
    left_out = (equal - (answer == said) for answer in accepted)
    return sum(min(1.0, others / 3) for others in left_out) / len(accepted)


def exact_score(text: str, answers: Sequence[str]) -> float:
    """GQA's rule: the answer in lower case, without the final period, is an accepted one."""
    clean = text.strip().rstrip(".").lower()
    return float(any(clean == answer.strip().rstrip(".").lower() for answer in answers))


_LETTER = re.compile(r"^[\s(\[*]*([A-Z])(?:[\s).:,\]*]|$)", re.ASCII)
_ANSWER_IS = re.compile(r"answer(?: is|:)\s*[(\[]?([A-Z])(?:[\s).:,\]]|$)", re.ASCII)


def read_choice(text: str, choices: Sequence[str]) -> int | None:
    """Which option an answer takes: by its letter, or by the text of one option alone; None if it takes none."""
    for pattern in (_LETTER, _ANSWER_IS):
        if (match := pattern.search(text.strip())) and (index := ord(match[1]) - 65) < len(choices):
            return index
    said = f" {normalise_vqa(text)} "
    found = [i for i, choice in enumerate(choices) if f" {normalise_vqa(choice)} " in said]
    exact = [i for i in found if f" {normalise_vqa(choices[i])} " == said]
    chosen = exact or found
    return chosen[0] if len(chosen) == 1 else None


_YES_NO = re.compile(r"\b(yes|no|not)\b", re.ASCII | re.IGNORECASE)


def read_yes_no(text: str) -> bool | None:
    """True for yes, False for no, None for neither; the first of the words yes, no and not decides."""
    match = _YES_NO.search(text)
    return None if match is None else match[1].lower() == "yes"


def pope_read(text: str) -> bool:
    """POPE's rule: no, where the first sentence has one of the words No, no, not; yes otherwise."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in ("No", "not", "no"))


def binary_figures(said: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """POPE's figures with yes as the positive class: accuracy, precision, recall, f1, yes_ratio; 0 over nothing."""
    pairs = list(zip(said, true, strict=True))
    hits = sum(s and t for s, t in pairs)
    precision, recall = _share(hits, sum(said)), _share(hits, sum(true))
    return {
        "accuracy": _share(sum(s == t for s, t in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(sum(said), len(pairs)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
