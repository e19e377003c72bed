"""One scored question or one conversation about its pictures, and every check of its fields."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from reprlib import Repr
from typing import Any, NoReturn

from ts_lightning.grounding.boxes import Box, check_box
from ts_lightning.grounding.tasks import UNDERSTANDING

MAX_CHARACTERS = 200_000  # of all texts of a record; no model here reads a quarter of it
MAX_ITEMS, MAX_DEPTH = 20_000, 50  # of a list, and of `meta`: what is nested deeper can't be sent between processes
MAX_JSON, MAX_IMAGES = 2 << 20, 1000  # bytes, pictures of a record
IMAGE_MARK = "<image>"
_HALF = re.compile(r"[\ud800-\udfff]")
REGION_MARK = re.compile(r"\{region:(\d+)\}")
_ZERO_WIDTH = "\u200b"


def hidden(text: str) -> str:
    """What a user typed, with its "<image>" and "{region:0}" as text and no placeholders."""
    return text.replace(IMAGE_MARK, f"<{_ZERO_WIDTH}image>").replace("{region:", f"{{{_ZERO_WIDTH}region:")


@dataclass
class SampleImage:
    """One picture: its file name at the source and its displayed (EXIF-transposed) size in pixels."""

    name: str
    width: int
    height: int


@dataclass
class Turn:
    """One message. `steps` are character spans [start, end) over `text` as stored, placeholders included."""

    role: str
    text: str
    steps: list[tuple[int, int]] | None = None


@dataclass
class SampleRegion:
    """Where something is in picture `image`: one of `box`, `boxes`, `points`, `polygon`, in [0, 1] of that picture.

    `area_px` is the object's area in pixels of the original picture.
    """

    image: int = 0
    phrase: str | None = None
    category: str | None = None
    iscrowd: int = 0
    area_px: float | None = None
    box: Box | None = None
    boxes: list[Box] | None = None
    points: list[tuple[float, float]] | None = None
    polygon: list[tuple[float, float]] | None = None

    @property
    def all_boxes(self) -> list[Box]:
        """Its boxes, none for points and polygons."""
        return [self.box] if self.box is not None else list(self.boxes or [])


@dataclass
class Answer:
    """The expected answer: a text, region indices, or both; neither means "there is no such object"."""

    text: str | None = None
    regions: list[int] = field(default_factory=list)


@dataclass
class Sample:
    """One question. Its JSON holds every field but the last four, null when unused.

    `task` is "understanding" or the name of a skill ("grounding"). Turns alternate user, assistant; the first user
    turn has one `<image>` for each picture, any turn may name `{region:i}`. `answer` None means nothing is scored.
    `after_question` stands behind the last question as it is, marks of the model included: it is a configuration's.
    """

    id: str
    source: str = ""
    task: str = UNDERSTANDING
    subtask: str | None = None
    tags: list[str] = field(default_factory=list)
    images: list[SampleImage] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    regions: list[SampleRegion] = field(default_factory=list)
    answer: Answer | None = None
    answers: list[str] | None = None
    choices: list[str] | None = None
    meta: dict[str, Any] | None = None
    key: str = ""
    shard: str = ""
    image_bytes: list[bytes] = field(default_factory=list, repr=False)
    after_question: str = ""

    @property
    def where(self) -> str:
        """`shard:key`, the name of this record in messages."""
        return f"{self.shard}:{self.key or self.id}"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Displayed (width, height) in pixels of every picture."""
        return [(image.width, image.height) for image in self.images]

    @property
    def answer_regions(self) -> list[SampleRegion]:
        """The regions that the expected answer names, in its order."""
        return [] if self.answer is None else [self.regions[i] for i in self.answer.regions]

    @property
    def answer_image(self) -> int:
        """The picture that the answer lies in, else the first."""
        return self.answer_regions[0].image if self.answer_regions else 0

    @property
    def true_box(self) -> Box | None:
        """The one box that the question asks for, if it asks for one (a caption of one object does not)."""
        if self.task == UNDERSTANDING or len(self.answer_regions) != 1 or "caption" in (self.subtask or ""):
            return None
        boxes = self.answer_regions[0].all_boxes
        return boxes[0] if len(boxes) == 1 else None

    @property
    def accepted_answers(self) -> list[str]:
        """The answers in words that are right; empty when the question is not scored on words."""
        if self.answers:
            return self.answers
        return [self.answer.text] if self.answer is not None and self.answer.text is not None else []

    @property
    def question(self) -> str:
        """The last question without the marks of its pictures."""
        return self.turns[-2].text.replace(IMAGE_MARK, "").strip() + self.after_question

    def without_bytes(self) -> "Sample":
        return replace(self, image_bytes=[])

    def to_json(self) -> bytes:
        """The record's JSON, one line, keys in a fixed order."""
        record = {name: self.__dict__[name] for name in _names(Sample)}
        return json.dumps(record, ensure_ascii=False, default=vars).encode()  # asdict would copy all

    @classmethod
    def from_json(
        cls, data: bytes | str, key: str = "", shard: str = "", image_bytes: Sequence[bytes] = ()
    ) -> "Sample":
        """Parse and validate a record; ValueError "<shard>:<key>: field ...: seen ..., expected ..."."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shard}:{key}: json: seen {str(error)[:200]!r}, expected one JSON object") from None
        return cls.from_values(record, key, shard, image_bytes)

    @classmethod
    def from_values(cls, record: Any, key: str = "", shard: str = "", image_bytes: Sequence[bytes] = ()) -> "Sample":
        """As `from_json`, of parsed JSON."""
        where = f"{shard}:{key}"
        values = _checked(Sample, record, where, "record")
        if isinstance(values["images"], list) and len(values["images"]) > MAX_IMAGES:
            _fail(where, "images", f"{len(values['images'])} items", f"at most {MAX_IMAGES}")
        for name, part in (("images", SampleImage), ("turns", Turn), ("regions", SampleRegion)):
            items = _listed(values[name], where, name)
            for i, item in enumerate(items):
                if type(item) is not dict or item.keys() != _names(part).keys():
                    _checked(part, item, where, f"{name}[{i}]")
            values[name] = [part(**item) for item in items]
        if values["answer"] is not None:
            values["answer"] = Answer(**_checked(Answer, values["answer"], where, "answer"))
        sample = cls(**values, key=key, shard=shard, image_bytes=list(image_bytes))
        sample.validate()
        return sample

    def validate(self) -> None:
        """Check every field and turn number lists into tuples; ValueError names the first field that is wrong."""
        where, own = self.where, self.__dict__
        for name, kind, expected in _PLAIN:
            if not isinstance(value := own[name], kind):
                _fail(where, name, value, expected)
            if type(value) is list and len(value) > MAX_ITEMS:
                _fail(where, name, f"{len(value)} items", f"at most {MAX_ITEMS}")
        for name in ("id", "task"):
            if not getattr(self, name):
                _fail(where, name, "", "a non-empty string")
        for name in ("tags", "answers", "choices"):
            for item in getattr(self, name) or ():
                if not isinstance(item, str):
                    _fail(where, name, item, "strings")
        if len(self.images) > MAX_IMAGES:
            _fail(where, "images", f"{len(self.images)} items", f"at most {MAX_IMAGES}")
        for i, image in enumerate(self.images):
            if not isinstance(image.name, str) or not image.name:
                _fail(where, f"images[{i}].name", image.name, "a file name")
            for side in ("width", "height"):
                if not _is_int(pixels := getattr(image, side), 1, 1_000_000):
                    _fail(where, f"images[{i}].{side}", pixels, "pixels, an integer above 0")
        for i, region in enumerate(self.regions):
            self._check_region(i, region)
        self._check_turns()
        if self.answer is not None:
            if not isinstance(self.answer.text, _TEXT):
                _fail(where, "answer.text", self.answer.text, "a string or null")
            for index in _listed(self.answer.regions, where, "answer.regions"):
                if not _is_int(index, 0, len(self.regions)):
                    _fail(where, "answer.regions", index, f"an index below {len(self.regions)}")
        self._check_texts()

    def _check_texts(self) -> None:
        """The length of all texts, and that they are text: half a surrogate pair can't be written or tokenized."""
        texts = [
            *(turn.text for turn in self.turns),
            *(text for r in self.regions for text in (r.phrase, r.category) if text is not None),
            *([self.answer.text] if self.answer is not None and self.answer.text is not None else []),
            *(self.answers or ()),
            *(self.choices or ()),
            *self.tags,
            *(image.name for image in self.images),
            *(self.id, self.source, self.task, self.subtask or ""),
            *(_texts_inside(self.meta, self.where) if self.meta else ()),
        ]
        together = "".join(texts)
        if len(together) > MAX_CHARACTERS:
            _fail(self.where, "texts", len(together), f"at most {MAX_CHARACTERS} characters in a record")
        if not together.isascii() and any(_HALF.search(text) for text in texts):
            half = next(match for text in texts if (match := _HALF.search(text)))
            _fail(self.where, "texts", half[0], "text that can be written as UTF-8")

    def _check_region(self, i: int, region: SampleRegion) -> None:
        where, name = self.where, f"regions[{i}]"
        if not _is_int(region.image, 0, len(self.images)):
            _fail(where, f"{name}.image", region.image, f"an index below {len(self.images)}")
        for part in ("phrase", "category"):
            if not isinstance(text := getattr(region, part), _TEXT):
                _fail(where, f"{name}.{part}", text, "a string or null")
        if region.iscrowd not in (0, 1):
            _fail(where, f"{name}.iscrowd", region.iscrowd, "0 or 1")
        if region.area_px is not None and not (_is_number(region.area_px) and 0 <= region.area_px < math.inf):
            _fail(where, f"{name}.area_px", region.area_px, "pixels, a number from 0")
        if (region.box, region.boxes, region.points, region.polygon).count(None) < 3:
            forms = [form for form in ("box", "boxes", "points", "polygon") if getattr(region, form) is not None]
            _fail(where, name, forms, "at most one of box, boxes, points, polygon")
        if region.box is not None:
            region.box = _box(region.box, where, f"{name}.box")
        if region.boxes is not None:
            boxes = _listed(region.boxes, where, f"{name}.boxes")
            region.boxes = [_box(box, where, f"{name}.boxes[{j}]") for j, box in enumerate(boxes)]
        if region.points is not None:
            region.points = _points(region.points, 1, where, f"{name}.points")
        if region.polygon is not None:
            region.polygon = _points(region.polygon, 3, where, f"{name}.polygon")

    def _check_turns(self) -> None:
        where = self.where
        if not self.turns or len(self.turns) % 2:
            _fail(where, "turns", f"{len(self.turns)} turns", "pairs of a user and an assistant turn")
        for i, turn in enumerate(self.turns):
            role = ("user", "assistant")[i % 2]
            if turn.role != role:
                _fail(where, f"turns[{i}].role", turn.role, repr(role))
            if not isinstance(turn.text, str):
                _fail(where, f"turns[{i}].text", turn.text, "a string")
            seen, expected = turn.text.count(IMAGE_MARK), len(self.images) if i == 0 else 0
            if seen != expected:
                _fail(where, f"turns[{i}].text", f"{seen} {IMAGE_MARK}", f"{expected} (first user turn: one a picture)")
            for digits in REGION_MARK.findall(turn.text) if "{region:" in turn.text else ():
                index = int(digits[-7:]) + MAX_ITEMS * (len(digits) > 7)  # a number of 5,000 digits is beyond any list
                known = index < len(self.regions)
                r = self.regions[index] if known else SampleRegion()
                if r.box is r.boxes is r.points is r.polygon is None:
                    _fail(where, f"turns[{i}].text", f"{{region:{index}}}", "a region with a place in the picture")
            if turn.steps is not None:
                turn.steps = self._spans(turn, f"turns[{i}].steps")

    def _spans(self, turn: Turn, name: str) -> list[tuple[int, int]]:
        spans, last = [], 0
        for span in _listed(turn.steps, self.where, name):
            if not (isinstance(span, list | tuple) and len(span) == 2 and all(_is_int(v, 0) for v in span)):
                _fail(self.where, name, span, "[start, end] character positions")
            if not last <= span[0] < span[1] <= len(turn.text):
                _fail(self.where, name, span, f"ascending spans inside {len(turn.text)} characters")
            spans.append((span[0], span[1]))
            last = span[1]
        return spans


_TEXT = (str, type(None))  # a tuple, since the union of the same types is four times slower to ask
_OUTSIDE_JSON = ("key", "shard", "image_bytes", "after_question")
_PLAIN: list[tuple[str, Any, str]] = [
    *((name, str, "a string") for name in ("id", "source", "task")),
    ("subtask", _TEXT, "a string or null"),
    *((name, list, "a list") for name in ("tags", "images", "turns", "regions")),
    *((name, (list, type(None)), "a list or null") for name in ("answers", "choices")),
    ("answer", (Answer, type(None)), "an object or null"),
    ("meta", (dict, type(None)), "an object or null"),
]


@cache
def _names(cls: type) -> dict[str, None]:
    """The fields of a class that its JSON has, in order."""
    return {f.name: None for f in fields(cls) if f.name not in _OUTSIDE_JSON}


_SHORT = Repr()  # a value of a million items is never written out for a message
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


def _fail(where: str, name: str, seen: object, expected: str) -> NoReturn:
    text = _SHORT.repr(seen)
    raise ValueError(
        f"{where}: field {name}: seen {text[:77] + '...' if len(text) > 80 else text}, expected {expected}"
    )


def _checked(cls: type, record: Any, where: str, name: str) -> dict[str, Any]:
    """`record` when it is an object with exactly the fields of `cls`."""
    if not isinstance(record, dict):
        _fail(where, name, record, "an object")
    names = _names(cls)
    if record.keys() == names.keys():
        return dict(record)
    if missing := [n for n in names if n not in record]:
        raise ValueError(f"{where}: field {name}: seen no {missing[0]!r}, expected it (null when unused)")
    if unknown := [n for n in record if n not in names]:
        raise ValueError(f"{where}: field {name}: seen unknown {unknown[0][:80]!r}, expected {', '.join(names)}")
    raise AssertionError("neither missing nor unknown")


def _listed(value: Any, where: str, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        _fail(where, name, value, "a list")
    if len(value) > MAX_ITEMS:
        _fail(where, name, f"{len(value)} items", f"at most {MAX_ITEMS}")
    return list(value)


def _texts_inside(meta: dict[str, Any] | None, where: str) -> Iterator[str]:
    """Every text in `meta`; ValueError where it is nested too deeply or holds too much."""
    level, count = [meta] if meta else [], 0
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                deeper += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                deeper += value
        if (count := count + len(deeper)) > MAX_ITEMS:
            _fail(where, "meta", f"{count} values", f"at most {MAX_ITEMS}")
        if not (level := deeper):
            return
    _fail(where, "meta", f"more than {MAX_DEPTH} levels", f"at most {MAX_DEPTH}")


def _is_number(value: object) -> bool:
    """A number, whole ones as far as a float holds them."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)


def _is_int(value: object, low: int, below: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < below


def _box(value: Any, where: str, name: str) -> Box:
    if type(value) is list and len(value) == 4 and all(type(v) is float for v in value):
        x1, y1, x2, y2 = value
        if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1:  # nearly all
            return x1, y1, x2, y2
    if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
        _fail(where, name, value, "4 numbers x1, y1, x2, y2")
    return check_box(value, f"{where}: field {name}")


def _points(value: Any, least: int, where: str, name: str) -> list[tuple[float, float]]:
    points = []
    for point in _listed(value, where, name):
        if not (isinstance(point, list | tuple) and len(point) == 2 and all(map(_is_number, point))):
            _fail(where, name, point, "[x, y] points")
        if not all(-1e-6 <= v <= 1 + 1e-6 for v in point):
            _fail(where, name, point, "points inside [0, 1]")
        points.append((point[0], point[1]))
    if len(points) < least:
        _fail(where, name, points, f"at least {least} points")
    return points
