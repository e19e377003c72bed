"""The one reader of a generated text: its objects, its steps, its words, and which box counts.

docs/metrics.md has the rules in words. Validation, prediction, scoring, rewards, the page and the galleries all read
with `read_answer`; none of them looks for a box, a tag or a step by itself.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import Codec, Mention
from ts_lightning.grounding.coordinates import Size
from ts_lightning.grounding.regions import Region
from ts_lightning.grounding.steps import STEP, is_rejection, step_spans

Span = tuple[int, int]
_TAG = re.compile(r"<(/?)answer>")
_TAGS = re.compile(r"</?(?:answer|think)>")
_SAID = re.compile(r"(?:so )?the answer is (.*?)\.?$", re.IGNORECASE | re.DOTALL)
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PICTURE = re.compile(
    rf"\b(?:(?:image|picture)[\s#-]{{0,2}}(\d{{1,3}})|(\d{{1,3}})(?:st|nd|rd|th) (?:image|picture)"
    rf"|({'|'.join(_ORDINALS)}) (?:image|picture))\b",
    re.ASCII | re.IGNORECASE,
)


class Object(NamedTuple):
    """A region that a text names. `image` (0-based) is None where there are several pictures and none is named.

    `step` is its place in `Answer.steps`, [start, end) its characters; `canonical`: written exactly as the codec
    writes it.
    """

    region: Region
    image: int | None = None
    phrase: str | None = None
    step: int = 0
    start: int = 0
    end: int = 0
    canonical: bool = True
    name: str | None = None

    @property
    def box(self) -> Box:
        """Xyxy in [0, 1] of its picture."""
        return self.region.box

    @property
    def is_box(self) -> bool:
        return self.region.kind == "box"


class Unread(NamedTuple):
    """Characters [start, end) that look like a region and are none, and why."""

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class Answer:
    """A text taken apart by `read_answer`.

    objects: every region of the text, in order. answered: the boxes that are the answer, in order; the first counts.
    span: the characters that are the answer. steps: spans of the steps, over the whole text. words: the answer in
    words, lower case, without boxes and marks ("" for none). rejected: it calls the question invalid. unread: what
    could not be read. named: the pictures that the answer names in words or ids, 0-based.
    """

    text: str
    objects: tuple[Object, ...]
    answered: tuple[Object, ...]
    span: Span
    steps: tuple[Span, ...]
    words: str
    rejected: bool
    unread: tuple[Unread, ...]
    named: tuple[int, ...]

    @property
    def counted(self) -> Object | None:
        """The object that counts where one box is asked: the first of the answer."""
        return self.answered[0] if self.answered else None

    @property
    def box(self) -> Box | None:
        """The box that counts, read leniently; None where none could be read."""
        return self.counted.box if self.counted else None

    @property
    def strict_box(self) -> Box | None:
        """The box that counts where only text in the notation's exact form does."""
        return next((thing.box for thing in self.answered if thing.canonical), None)

    @property
    def image(self) -> int | None:
        """The 0-based picture that the answer is said to lie in: that of the counted box, else the only one named."""
        if self.counted and self.counted.image is not None:
            return self.counted.image
        return self.named[0] if len(set(self.named)) == 1 else None

    @property
    def status(self) -> str:
        """`ok`, `several` (boxes: the first counts) or `unparsed` (none)."""
        return ("unparsed", "ok")[len(self.answered)] if len(self.answered) < 2 else "several"

    @cached_property
    def step_boxes(self) -> list[list[Box]]:
        """The boxes of every step."""
        boxes: list[list[Box]] = [[] for _ in self.steps]
        for thing in self.objects:
            if thing.is_box:
                boxes[thing.step].append(thing.box)
        return boxes


def read_answer(text: str, codec: Codec, sizes: Sequence[Size], unnamed: int = 0) -> Answer:
    """Take a generated text apart; never raises, and takes time linear in the text.

    sizes: (width, height) in pixels of the question's displayed pictures, in order. A box is read with the size of
    the picture that it is said to lie in; where the text names none, with that of picture `unnamed` (the one that the
    question is about, where that is known).
    """
    sizes = list(sizes) or [(1, 1)]
    start, end, tagged = answer_part(text)
    steps = step_spans(text)
    starts = [a for a, _ in steps]
    mentions = _Mentions(text, codec, sizes)
    names = _pictures_in_words(text, mentions.spans, len(sizes))
    places = [at for at, _ in names]
    inside = [image for at, image in names if start <= at < end]
    objects: list[Object] = []
    unread: list[Unread] = []
    for i, (left, right) in enumerate(mentions.spans):
        step = max(0, bisect_right(starts, left) - 1)
        image = mentions.image(i)
        if image is None and len(sizes) == 1:
            image = 0
        elif image is None:
            before = bisect_right(places, left) - 1
            if before >= 0 and places[before] >= (start if start <= left < end else starts[step]):
                image = names[before][1]
            elif start <= left < end and len(set(inside)) == 1:
                image = inside[0]
        if image is not None and not 0 <= image < len(sizes):
            unread.append(Unread(left, right, f"picture {image + 1} of {len(sizes)}"))
            continue
        size = sizes[(unnamed if unnamed < len(sizes) else 0) if image is None else image]
        mention = mentions.read(i, size)
        if not mention.regions:
            unread.append(Unread(left, right, mention.why or "no region"))
            continue
        canonical = codec.is_canonical(mention, text[left:right], size)
        for region in mention.regions:
            objects.append(Object(region, image, mention.phrase, step, left, right, canonical, mention.name))
    answered = [thing for thing in objects if start <= thing.start < end and thing.is_box]
    if not answered and not tagged and len(steps) > 1:  # the last step only names its answer: the last box before it
        before_it = [thing for thing in objects if thing.is_box]
        answered = [thing for thing in before_it if thing.start == before_it[-1].start]
    part = text[start:end]
    ids = [image for i, (a, _) in enumerate(mentions.spans) if start <= a < end and (image := mentions.image(i))]
    ids += [0 for i, (a, _) in enumerate(mentions.spans) if start <= a < end and mentions.image(i) == 0]
    return Answer(
        text,
        tuple(objects),
        tuple(_once(answered)),
        (start, end),
        tuple(steps),
        _words(text, (start, end), mentions.spans),
        is_rejection(part if tagged else text),
        tuple(unread),
        tuple(image for image in [*inside, *ids] if 0 <= image < len(sizes)),
    )


def brackets(answer: Answer) -> list[tuple[Span, list[Object]]]:
    """The objects of a text by the bracket that holds them, in order."""
    return [(span, list(group)) for span, group in groupby(answer.objects, lambda thing: (thing.start, thing.end))]


def answer_part(text: str) -> tuple[int, int, bool]:
    """Characters [start, end) that are the answer, and whether tags mark them.

    The last `<answer>` that has anything in it, up to its end tag, the next `<answer>`, or the end of a text that was
    cut; else what follows the last `</think>`; else, of a thought that never ended, nothing; else the whole text. In a
    part without tags the last step is the answer.
    """
    tags = list(_TAG.finditer(text))
    opened = [(i, tag) for i, tag in enumerate(tags) if not tag[1]]
    for i, tag in reversed(opened):
        end = tags[i + 1].start() if i + 1 < len(tags) else len(text)
        if text[tag.end() : end].strip():
            return tag.end(), end, True
    if opened:
        return len(text), len(text), True
    start = text.rfind("</think>")
    if start < 0 and "<think>" in text:
        return len(text), len(text), True
    start = max(0, start + len("</think>")) if start >= 0 else 0
    left, right = step_spans(text[start:])[-1]
    return start + left, start + right, start > 0


class _Mentions:
    """The codec's brackets of a text, each read with the size of its own picture: one search a size, not a bracket."""

    def __init__(self, text: str, codec: Codec, sizes: Sequence[Size]) -> None:
        self.text, self.codec = text, codec
        self.by_size: dict[Size, list[Mention]] = {sizes[0]: codec.find(text, sizes[0])}
        self.first = self.by_size[sizes[0]]
        self.spans = [(mention.start, mention.end) for mention in self.first]

    def image(self, i: int) -> int | None:
        """The picture that the notation itself names."""
        return self.first[i].image

    def read(self, i: int, size: Size) -> Mention:
        if size not in self.by_size:
            self.by_size[size] = self.codec.find(self.text, size)
        return self.by_size[size][i]


def _pictures_in_words(text: str, spans: Sequence[Span], count: int) -> list[tuple[int, int]]:
    """(place, 0-based picture) of every "Image-3" and "the third image" outside the brackets that exists."""
    if count < 2:
        return []
    starts, found = [a for a, _ in spans], []
    for match in _PICTURE.finditer(text):
        at = bisect_right(starts, match.start()) - 1
        if at >= 0 and match.start() < spans[at][1]:
            continue
        number = match[1] or match[2]
        image = int(number) - 1 if number else _ORDINALS.index(match[3].lower())
        if 0 <= image < count:
            found.append((match.start(), image))
    return found


def _once(things: Sequence[Object]) -> list[Object]:
    """An object that has a name counts once, where it is named first."""
    seen: set[str] = set()
    kept = []
    for thing in things:
        if thing.name is None or thing.name not in seen:
            kept.append(thing)
        if thing.name is not None:
            seen.add(thing.name)
    return kept


def _words(text: str, span: Span, brackets: Sequence[Span]) -> str:
    pieces, end = [], span[0]
    for left, right in brackets:
        if left >= span[1]:
            break
        if right > span[0]:
            pieces.append(text[end : max(end, left)])
            end = max(end, right)
    part = _TAGS.sub(" ", STEP.sub("", "".join([*pieces, text[end : max(end, span[1])]]))).strip()
    if match := _SAID.match(part):
        part = match[1]
    return " ".join(part.lower().replace(".", " ").split())
