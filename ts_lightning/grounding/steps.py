"""Step-by-step answers: where the steps are, and which box is the answer."""

import re
from typing import NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.coordinates import Size

STEP = re.compile(r"(?<!\w)Step \d{1,3}[:;]")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_SENTENCE_ANSWER = re.compile(r"(?:so )?the answer is (.*?)\.?$", re.IGNORECASE | re.DOTALL)
REJECTION = "This question is invalid."


class Prediction(NamedTuple):
    """The one box that an answer stands for; `status` is "ok", "several" (the first counts) or "unparsed"."""

    box: Box | None
    status: str


def step_spans(text: str) -> list[tuple[int, int]]:
    """Character spans [start, end) of the steps; the whole text is one step where none is marked."""
    starts = [match.start() for match in STEP.finditer(text)]
    if not starts:
        return [(0, len(text))]
    starts[0] = 0  # whatever precedes "Step 1" is said in step 1
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def is_rejection(text: str) -> bool:
    """Whether the answer calls the question invalid."""
    return REJECTION.rstrip(".").lower() in text.lower()


def answer_span(text: str) -> tuple[int, int]:
    """Characters [start, end) that count as the answer: the inside of <answer>, the last step, or the whole text."""
    if match := _ANSWER.search(text):
        return match.span(1)
    return step_spans(text)[-1]


def final_answer(text: str, codec: Codec) -> str:
    """The answer in words, lower case, without boxes, markers and the closing period."""
    start, end = answer_span(text)
    part = STEP.sub("", text[start:end]).strip()
    for parsed in reversed(codec.parse(part)):
        part = part[: parsed.start] + part[parsed.end :]
    if match := _SENTENCE_ANSWER.match(part.strip()):
        part = match[1]
    return " ".join(part.lower().replace(".", " ").split())


def predicted_box(text: str, codec: Codec, image_size: Size | None = None, strict: bool = False) -> Prediction:
    """The box of the last step, of <answer>, or of a plain answer; `strict` takes canonical text only.

    A last step may only name its answer ("So the answer is orange."): then the last box before it counts.
    """
    parse = codec.parse_strict if strict else codec.parse
    mentions = parse(text, image_size)  # of the whole text: an answer may name objects by the ids of its reasoning
    start, end = answer_span(text)
    boxes = [box for mention in mentions if start <= mention.start < end for box in mention.boxes]
    if not boxes and mentions and len(step_spans(text)) > 1:
        boxes = mentions[-1].boxes
    if not boxes:
        return Prediction(None, "unparsed")
    return Prediction(boxes[0], "ok" if len(boxes) == 1 else "several")
