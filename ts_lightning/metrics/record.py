"""The record of one answered question: everything that its score depends on, as plain values."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ts_lightning.grounding.answer import Answer, read_answer
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.grounding.codecs import Codec, get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace, Size
from ts_lightning.grounding.tasks import GROUNDING, UNDERSTANDING
from ts_lightning.metrics.steps import StepAnswer


@dataclass(frozen=True)
class Truth:
    """What is right. Boxes are xyxy in [0, 1] of their picture.

    text: the expected answer as the shard has it. answers: accepted answers in words. image: the picture that the
    answer lies in, None where it is not known. box: the one box asked for; boxes: every box of the answer. area_px:
    the object's area in pixels of the original picture where the data set names it. steps: of step-by-step and negative
    questions alone.
    """

    text: str = ""
    answers: tuple[str, ...] = ()
    image: int | None = None
    box: Box | None = None
    boxes: tuple[Box, ...] = ()
    area_px: float | None = None
    steps: StepAnswer | None = None


@dataclass(frozen=True)
class Record:
    """One question, what was said, and what is right: `predict` writes it, and every score is taken from it alone.

    sizes: (width, height) of the displayed pictures; `codec`, `grid`, `frame` and `resized` (of each picture, where the
    frame is what the image processor makes) say how boxes of the text are read. protocol, reading, annotations: as the
    suite's YAML has them. cut_off: the answer ended at the token limit. missing: nobody answered, and `text` is empty.
    pictures: what the questions of `shard` about the same pictures share, None in files of earlier versions.
    """

    suite: str
    key: str
    text: str
    truth: Truth
    codec: str = "scout"
    grid: str = "100"
    frame: str = "original"
    sizes: tuple[Size, ...] = ((1, 1),)
    resized: tuple[Size, ...] | None = None
    id: str = ""
    shard: str = ""
    source: str = ""
    task: str = GROUNDING
    subtask: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    question: str = ""
    protocol: str | None = None
    reading: str | None = None
    annotations: str | None = None
    cut_off: bool = False
    missing: bool = False
    pictures: str | None = None

    @cached_property
    def notation(self) -> Codec:
        """The codec that the answer is read with: the record's own, over its own frame."""
        known = None if self.resized is None else dict(zip(self.sizes, self.resized, strict=True))
        return get_codec(
            self.codec, CoordinateSpace(self.grid, self.frame, None if known is None else known.__getitem__)
        )

    @cached_property
    def answer(self) -> Answer:
        """The text, read."""
        return read_answer(self.text, self.notation, self.sizes, self.image)

    @property
    def image(self) -> int:
        """The picture whose size reads a box that names none: the answer's where it is known, else the first."""
        return self.truth.image or 0

    @property
    def size(self) -> Size:
        """(width, height) of that picture."""
        return self.sizes[self.image]

    @property
    def frame_name(self) -> str:
        """`1000 of the original image`, for reports."""
        return f"{self.grid} of the {self.frame.replace('_', ' ')} image"

    @property
    def area_px(self) -> float:
        """Pixels of the true box's object: as the data set names them, else of the box."""
        if self.truth.area_px is not None:
            return float(self.truth.area_px)
        x1, y1, x2, y2 = self.truth.box or (0.0, 0.0, 0.0, 0.0)
        return (x2 - x1) * self.size[0] * (y2 - y1) * self.size[1]

    @cached_property
    def ceiling(self) -> float:
        """IoU of the true box with itself, written and read: the best that an answer on this grid reaches."""
        if self.truth.box is None:
            return math.nan
        back = self.notation.parse(self.notation.format([self.truth.box], self.size), self.size)
        return round(iou(self.truth.box, back[0].boxes[0]), 6) if back else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values: every field, and, for people, what was read: `parse_status`, `box`, `box_px`."""
        values = asdict(self)
        if self.truth.steps is not None:
            values["truth"]["steps"] = self.truth.steps._asdict()
        box = self.answer.box if self.task != UNDERSTANDING else None
        status = self.answer.status if self.task != UNDERSTANDING else "not_asked"
        read = {"parse_status": status, "box": box, "box_px": None if box is None else in_pixels(box, self._said_size)}
        return values | read

    @property
    def _said_size(self) -> Size:
        image = self.answer.image
        return self.sizes[image] if image is not None else self.size

    @classmethod
    def from_json(cls, line: Mapping[str, Any], where: str = "record") -> "Record":
        """The record of `to_json`'s values; ValueError naming `where` for what is none."""
        if not isinstance(line, Mapping):
            raise ValueError(f"{where}: seen {str(line)[:60]!r}, expected a prediction record")
        for name in ("suite", "key", "text", "truth", "sizes", "codec", "grid", "frame"):
            if name not in line:
                raise ValueError(
                    f"{where}: seen no {name}, expected a prediction record of `ts-lightning predict` "
                    "(a file of texts alone is scored with --shards)"
                )
        for name in ("suite", "key", "text", "codec", "grid", "frame"):
            if not isinstance(line[name], str):
                raise ValueError(f"{where}: {name}: seen {line[name]!r}, expected a text")
        names = {f.name for f in fields(cls)}
        values = {k: v for k, v in line.items() if k in names}
        for name in ("tags", "choices"):
            if values.get(name) is not None:
                values[name] = tuple(_texts(values[name], f"{where}: {name}"))
        for name in ("sizes", "resized"):
            if name == "sizes" or values.get(name) is not None:
                values[name] = _sizes(values[name], f"{where}: {name}")
        if values.get("resized") is not None and len(values["resized"]) != len(values["sizes"]):
            raise ValueError(f"{where}: resized: seen {len(values['resized'])} sizes, expected {len(values['sizes'])}")
        values["meta"] = dict(values.get("meta") or {})
        values["truth"] = _truth(line["truth"], f"{where}: truth", len(values["sizes"]))
        try:
            record = cls(**values)
            record.notation  # noqa: B018 (an unknown codec or frame is named here)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        return record


def space_fields(codec: Codec, sizes: Sequence[Size]) -> dict[str, Any]:
    """The fields of a record that name `codec` and its frame: a resize rule becomes each picture's size."""
    resized = codec.space.resized
    each = None if resized is None else tuple(tuple(resized(size) if callable(resized) else resized) for size in sizes)
    return {"codec": codec.name, "grid": codec.space.grid, "frame": codec.space.frame, "resized": each}


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """JSON lines, one a record; an earlier file is replaced when the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record.to_json()) + "\n" for record in records)
    os.replace(new, path)


def read_records(path: str | Path) -> list[Record]:
    """The records of a file of `write_records`; ValueError for a line that is none, and for a question answered twice.

    Two shards may have questions of one key.
    """
    records, seen = [], set()
    with Path(path).open(encoding="utf-8-sig", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
            except ValueError:
                cut = " (is the file cut off?)" if not line.endswith("\n") else ""
                raise ValueError(f"{where}: seen {line.strip()[:60]!r}, expected a prediction record{cut}") from None
            record = Record.from_json(values, where)
            question = record.suite, record.shard, record.key
            if question in seen:
                raise ValueError(
                    f"{where}: seen {record.suite}:{record.key} more than once, expected one answer a question"
                )
            seen.add(question)
            records.append(record)
    return records


def distinct_keys(records: Sequence[Record]) -> list[Record]:
    """The records; where questions of a suite share a key, it is led by their shard."""
    counts = Counter((record.suite, record.key) for record in records)
    return [
        record if counts[record.suite, record.key] == 1 else replace(record, key=f"{record.shard}:{record.key}")
        for record in records
    ]


def in_pixels(box: Box, size: Size) -> list[float]:
    """A [0, 1] box in pixels of a picture of (width, height), two decimals."""
    return [round(value * side, 2) for value, side in zip(box, size * 2, strict=True)]


def _truth(values: Any, where: str, pictures: int) -> Truth:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: seen {values!r}, expected an object")
    box, steps, image = values.get("box"), values.get("steps"), values.get("image")
    if image is not None and not (isinstance(image, int) and 0 <= image < pictures):
        raise ValueError(f"{where}.image: seen {image!r}, expected the index of one of {pictures} pictures")
    if steps is not None:
        boxes = [[_box(one, f"{where}.steps") for one in step] for step in steps["step_boxes"]]
        steps = StepAnswer(str(steps["answer"]), boxes, bool(steps["rejected"]))
    return Truth(
        str(values.get("text") or ""),
        tuple(_texts(values.get("answers") or [], f"{where}.answers")),
        image,
        None if box is None else _box(box, f"{where}.box"),
        tuple(_box(one, f"{where}.boxes") for one in values.get("boxes") or []),
        None if values.get("area_px") is None else float(values["area_px"]),
        steps,
    )


def _box(values: Any, where: str) -> Box:
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(_is_number, values)):
        raise ValueError(f"{where}: seen {values!r}, expected four finite numbers")
    return (values[0], values[1], values[2], values[3])


def _sizes(values: Any, where: str) -> tuple[Size, ...]:
    good = isinstance(values, list | tuple) and all(
        isinstance(one, list | tuple) and len(one) == 2 and all(_is_number(v) and v > 0 for v in one) for one in values
    )
    if not good or not values:
        raise ValueError(f"{where}: seen {values!r}, expected the width and height in pixels of each picture")
    return tuple((one[0], one[1]) for one in values)


def _texts(values: Any, where: str) -> list[str]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: seen {values!r}, expected a list of texts")
    return list(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
