"""What a generated answer must hold before it is written: form, boxes, answer, absence."""

import re
from collections.abc import Callable
from typing import NamedTuple

from ts_lightning.data.sample import REGION_MARK
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.pipelines.claims import AGREE, ELSEWHERE, WHOLE, findings, may_be
from ts_lightning.pipelines.scenes import Scene, stem

_STEP = re.compile(r"Step (\d+)\s*[:;]\s*")
_ANSWER = re.compile(r"so the answer is\s*(.*?)\s*\.?\s*$", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"[a-z0-9]+")


class Rejected(Exception):
    """Why a draft is left out."""


class Draft(NamedTuple):
    """A checked question with its steps (`{region:i}` marks) and boxes; `short` is what the question's writer said.

    `unchecked`: it says what no annotation confirms (see `claims`).
    """

    question: str
    steps: str
    boxes: list[Box]
    answer: str
    short: str
    unchecked: bool = False
    negative: bool = False


def check_positive(
    scene: Scene,
    question: str,
    short: str,
    written: tuple[str, list[Box]],
    again: Callable[[], tuple[str, list[Box]]] | None,
) -> Draft:
    """The draft, or Rejected with the first reason.

    Boxes must meet an annotated one, or one of a second answer (`again`), with IoU at least 0.5.
    """
    text, boxes = written
    steps = numbered(text)
    if not boxes:
        raise Rejected("no box in the steps")
    match = _ANSWER.search(steps)
    if match is None:
        raise Rejected("no final answer")
    answer = " ".join(REGION_MARK.sub("", match[1]).split()).strip(" .,")
    if not same_answer(answer, short):
        raise Rejected("final answer differs from the question's")
    loose = [box for box in boxes if scene.match(box, AGREE) is None]
    if loose:
        other = again()[1] if again is not None else []
        if any(max((iou(box, b) for b in other), default=0.0) < AGREE for box in loose):
            raise Rejected("box that agrees with no annotation" + (" and no second answer" if again else ""))
    if any((box[2] - box[0]) * (box[3] - box[1]) >= WHOLE and not _as_large(scene, box) for box in boxes):
        raise Rejected("box of nearly the whole picture that no annotation fills")
    found = findings(steps, boxes, scene)
    if loose:  # seen twice where nothing is annotated: neither right nor wrong
        found.unchecked.extend(wrong for wrong in found.wrong if ELSEWHERE in wrong)
        found.wrong[:] = [wrong for wrong in found.wrong if ELSEWHERE not in wrong]
    if found.wrong:
        raise Rejected(found.reason)
    before = _content(REGION_MARK.sub("", steps[: match.start()]))
    named = [_content(part) for part in re.split(r",|\band\b", REGION_MARK.sub("", match[1]))]
    if not all(words & before for words in named if words):  # "swimming pool" where a step says pool
        raise Rejected("final answer that no step speaks of")
    return Draft(question, steps, boxes, answer, short.strip(" ."), found.verdict == "unchecked")


def _as_large(scene: Scene, box: Box) -> bool:
    return scene.match(box, 0.8) is not None


def check_negative(scene: Scene, question: str, steps: str, boxes: list[Box], parts: list[str]) -> Draft:
    """The draft of a refusal; Rejected where the thing is annotated or captioned, or what is shown instead is not.

    A synonym of it, or a kind of it, is the thing too: a sofa is there where a couch is, an animal where a dog is.
    """
    absent = re.sub(r"^find (the|a|an)? ?|\s+in the image$", "", parts[0], flags=re.IGNORECASE).strip().lower()
    head = absent.split()[-1] if absent else ""
    if not head or stem(head) not in {stem(word) for word in _WORD.findall(question.lower())}:
        raise Rejected("negative: question asks for another thing than the refusal")
    known = scene.words()
    if stem(head) in known or any(may_be(absent, name) for name in {*known, *(thing.name for thing in scene.things)}):
        raise Rejected("negative: the thing is in the picture")
    if not parts[-1].lower().rstrip(".").endswith("question is invalid"):
        raise Rejected("negative: refusal has another form than find, there is, invalid")
    if not boxes:
        raise Rejected("negative: no box of what is there")
    if any(scene.match(box, AGREE) is None for box in boxes):
        raise Rejected("negative: box that agrees with no annotation")
    found = findings(steps, boxes, scene)
    if found.wrong:
        raise Rejected(f"negative: {found.reason}")
    return Draft(question, steps, boxes, "", "", found.verdict == "unchecked", True)


def numbered(text: str) -> str:
    """Steps on one line, numbered from 1; Rejected where the numbers do not ascend or there is one step alone."""
    flat = " ".join(text.split())
    marks = list(_STEP.finditer(flat))
    if [int(mark[1]) for mark in marks] != list(range(1, len(marks) + 1)) or len(marks) < 2:
        raise Rejected("answer that is no numbered steps")
    parts = [
        flat[mark.end() : nxt.start() if nxt else len(flat)].strip()
        for mark, nxt in zip(marks, [*marks[1:], None], strict=True)
    ]
    return " ".join(f"Step {i}: {part}" for i, part in enumerate(parts, 1))


def same_answer(one: str, two: str) -> bool:
    """Equal after lower case, plural endings and articles, or one holds the words of the other."""
    a, b = _content(one), _content(two)
    return bool(a and b) and (a <= b or b <= a)


def same_question(one: str, two: str) -> bool:
    """Equal but for articles, plural endings and marks, in this order of words."""
    return question_words(one) == question_words(two)


def _content(text: str) -> set[str]:
    return {stem(word) for word in _WORD.findall(text.lower())} - {"the", "a", "an", "is", "are"}


def question_words(text: str) -> list[str]:
    """A question's words, as near-duplicates are compared."""
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in ("the", "a", "an", "is", "are")]
