"""Which option of a multiple choice question an answer takes: 0-based, or None."""

import re
from collections.abc import Sequence

from ts_lightning.metrics.readings.words import vqav2_normalise

# A letter alone: what follows is a mark or the end, never a blank and a word ("A man" takes no option).
_END = r"(?=[.):,;\]}*\"'!]|\s*$)"
_SAID = re.compile(
    r"\b(?i:answer|option|choice)\b[\s*]{0,4}(?i:is|was|would be|should be|must be)?[\s:*]{0,4}"
    rf"(?i:(?:option|choice)\s{{1,3}})?[(\[{{*\"']{{0,4}}(?:([A-Za-z]){_END}|([A-Z])\b(?!\s+(?!because|since)[a-z])|([B-HJ-Z])\b)",
    re.ASCII,
)
_LEADING = re.compile(rf"^[\s(\[{{*\"']{{0,8}}([A-Za-z]){_END}", re.ASCII)
_ALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])", re.ASCII)
_NO_LETTER = re.compile(r"\b[AI](?=\s+(?!(?:or|and|because|since)\b)[a-z])", re.ASCII)  # "A man", "I see"


def read_option(text: str, choices: Sequence[str]) -> int | None:
    """Our reading: what "the answer is X" says, a leading letter alone, the one letter that occurs, one option's text.

    The first of these that is there. "A man is riding. The answer is D." is D, "A blue sky" and "A or B" name none.
    """
    letters = [chr(65 + i) for i in range(min(len(choices), 26))]
    text = text.strip()
    for said in _SAID.finditer(text):
        if (letter := next(filter(None, said.groups())).upper()) in letters:
            return letters.index(letter)
    if (match := _LEADING.match(text)) and match[1].upper() in letters:
        return letters.index(match[1].upper())
    alone = set(_ALONE.findall(_NO_LETTER.sub("", text))) & set(letters)
    if len(alone) == 1:
        return letters.index(alone.pop())
    return None if alone else _by_text(text, choices)


def _by_text(text: str, choices: Sequence[str]) -> int | None:
    """The option whose text is the answer, else the only one whose text occurs in it as whole words."""
    said = f" {vqav2_normalise(text)} "
    wanted = [f" {vqav2_normalise(choice)} " for choice in choices]
    found = [i for i, choice in enumerate(wanted) if choice.strip() and choice in said]
    exact = [i for i in found if wanted[i] == said]
    chosen = exact or found
    return chosen[0] if len(chosen) == 1 else None


_LLAVA_SAYS = re.compile(r"The answer is ([A-E])(\.?)")


def llava_option(text: str, count: int) -> int | None:
    """LLaVA's reading of ScienceQA (`eval_science_qa.py`), of `count` options: letters A to E.

    The whole answer is a letter; else it begins with a letter, a period and a blank; else "The answer is X.", or
    without a period "The answer is X". A new line counts as ". ". Where "The answer is" has no letter, or the letter
    has no option, the official script has no answer.
    """
    text = text.replace("\n", ". ")
    letter: str | None = None
    if text.strip() in ("A", "B", "C", "D", "E"):
        letter = text.strip()
    elif text[:1] in ("A", "B", "C", "D", "E") and text[1:3] == ". ":
        letter = text[0]
    else:
        found = _LLAVA_SAYS.findall(text)
        with_period = [one for one, period in found if period]
        letter = (with_period or [one for one, _ in found] or [None])[0]
    index = None if letter is None else ord(letter) - 65
    return index if index is not None and index < count else None


_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def vlmevalkit_option(text: str, choices: Sequence[str]) -> int | None:
    """VLMEvalKit's `can_infer`: by letter, else by text; None where it asks a judge, and for its "Z" (a refusal).

    By letter: marks become blanks; exactly one of the options' letters is a word, first among the last four words. By
    text: the answer has at most twice the characters of all options together and contains exactly one of them, in any
    case, also inside a word.
    """
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return None
        words = text.translate(_MARKS).split()
        letters = [chr(65 + i) for i in range(min(len(choices), 26))]
        present = [i for i, letter in enumerate(letters) if letter in words]
        if len(present) == 1 and words.index(letters[present[0]]) > len(words) - 5:
            return present[0]
        if not present and "Z" in words:
            return None
    if len(text) > 2 * sum(map(len, choices)):
        return None
    lower = text.lower()
    found = [i for i, choice in enumerate(choices) if choice.lower() in lower]
    return found[0] if len(found) == 1 else None


_LMMS_EVAL = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])\s*[\.)\]]*",
        r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*(?:\.|\)|])",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
]


def lmms_eval_option(text: str, count: int) -> int | None:
    """lmms-eval's reading of V*Bench, of letters A to D: the first of its rules that finds one.

    A first letter, also that of a word ("Blue" is B); after "answer", "choice" or "option"; "(X)"; before a mark; alone
    between blanks; the only letter of the four that occurs.
    """
    text = text.strip().upper()
    found = next((match[1] for rule in _LMMS_EVAL if (match := rule.search(text))), None)
    if found is None:
        letters = re.findall(r"[A-D]", text)
        found = letters[0] if len(letters) == 1 else None
    index = None if found is None else ord(found.upper()) - 65
    return index if index is not None and index < count else None
