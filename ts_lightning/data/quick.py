"""A record's JSON looked over for an index, ten times as fast as by the checks that name what is wrong.

`quick_look` says nothing of a record that it does not understand: then `record.Questions`, which says why, decides. So
it may refuse what is right, and must not take what is wrong (tests/unit/data/test_quick.py).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from ts_lightning.data.record import MAX_QUESTIONS
from ts_lightning.data.sample import IMAGE_MARK, MAX_CHARACTERS, MAX_IMAGES, MAX_ITEMS, REGION_MARK

_MAX_META, _MAX_NESTED = 2000, 40  # bytes of a `meta`, and brackets in it, below every limit of its values and depth

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ITEMS)]
_Pixels = Annotated[int, msgspec.Meta(ge=1, lt=1_000_000)]
_Texts = Annotated[list[str], msgspec.Meta(max_length=MAX_ITEMS)]
_Numbers = Annotated[list[_Number], msgspec.Meta(max_length=MAX_ITEMS)]
_Box = tuple[float, float, float, float]


class _Image(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: _Text
    width: _Pixels
    height: _Pixels


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["user", "assistant"]
    text: str
    steps: list[tuple[int, int]] | None


class _Region(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    image: _Number
    phrase: str | None
    category: str | None
    iscrowd: Literal[0, 1]
    area_px: Annotated[float, msgspec.Meta(ge=0)] | None
    box: _Box | None
    boxes: list[_Box] | None
    points: None
    polygon: None


class _Answer(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    text: str | None
    regions: _Numbers


class _Question(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: _Text
    task: _Text
    subtask: str | None
    tags: _Texts
    regions: _Numbers
    turns: Annotated[list[_Turn], msgspec.Meta(min_length=2, max_length=MAX_ITEMS)]
    answer: _Answer | None
    answers: _Texts | None
    choices: _Texts | None
    meta: msgspec.Raw


class _Record(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    version: Literal[2]
    source: str
    images: Annotated[list[_Image], msgspec.Meta(max_length=MAX_IMAGES)]
    regions: Annotated[list[_Region], msgspec.Meta(max_length=MAX_ITEMS)]
    questions: Annotated[list[_Question], msgspec.Meta(min_length=1, max_length=MAX_QUESTIONS)]


class _Version1(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: _Text
    source: str
    task: _Text
    subtask: str | None
    tags: _Texts
    images: Annotated[list[_Image], msgspec.Meta(max_length=MAX_IMAGES)]
    turns: Annotated[list[_Turn], msgspec.Meta(min_length=2, max_length=MAX_ITEMS)]
    regions: Annotated[list[_Region], msgspec.Meta(max_length=MAX_ITEMS)]
    answer: _Answer | None
    answers: _Texts | None
    choices: _Texts | None
    meta: msgspec.Raw


_record, _version_1 = msgspec.json.Decoder(_Record).decode, msgspec.json.Decoder(_Version1).decode


def quick_look(data: bytes) -> tuple[int, list[str]] | None:
    """(number of pictures, tags of each question joined by tabs) of a record that is surely right; None of others."""
    if len(data) > MAX_CHARACTERS:
        return None
    record: _Record | _Version1
    questions: Sequence[_Question | _Version1]
    try:
        if data.startswith(b'{"version"'):
            record = _record(data)
            questions, every = record.questions, record.regions
            if sum([len(question.regions) for question in questions]) > MAX_ITEMS:
                return None
            regions = [[every[number] for number in question.regions] for question in questions]
        else:
            record = _version_1(data)
            questions, regions = [record], [record.regions]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        return None
    count = len(record.images)
    for question, own in zip(questions, regions, strict=True):
        if not _right(question, own, count):
            return None
    return count, ["\t".join(question.tags) for question in questions]


def _right(question: _Question | _Version1, regions: list[_Region], num_images: int) -> bool:
    meta = bytes(question.meta)
    if meta != b"null" and (
        meta[:1] != b"{"
        or len(meta) > _MAX_META
        or meta.count(b"{") + meta.count(b"[") > _MAX_NESTED
        or b"\\u" in meta
        or not meta.isascii()
    ):
        return False
    for region in regions:
        box, boxes = region.box, region.boxes
        if region.image >= num_images or (box is not None and boxes is not None):
            return False
        for x1, y1, x2, y2 in (box,) if box else boxes or ():
            if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
                return False
    role, marks = "user", num_images
    for turn in question.turns:
        text = turn.text
        if turn.role != role or text.count(IMAGE_MARK) != marks:
            return False
        role, marks = "assistant" if role == "user" else "user", 0
        if "{region:" in text:
            for digits in REGION_MARK.findall(text):
                if len(digits) > 6 or int(digits) >= len(regions):
                    return False
                if regions[int(digits)].box is None and regions[int(digits)].boxes is None:
                    return False
        last = 0
        for start, end in turn.steps or ():
            if not last <= start < end <= len(text):
                return False
            last = end
    answer = question.answer
    return len(question.turns) % 2 == 0 and (answer is None or all(r < len(regions) for r in answer.regions))
