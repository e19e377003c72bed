"""What converters share: reading files with one-line errors, pictures by name, samples with everything filled in."""

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn
from zlib import crc32

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.prompts import templates

UNKNOWN = (1000, 1000)  # the size of a picture that is not here and whose file does not say it


@dataclass
class Pictures:
    """Pictures of a folder by file name; without a folder samples carry no bytes.

    `excluded` names pictures that must not be used (validation pictures of other sets). `dropped` counts what is left
    out, by reason.
    """

    folder: Path | None = None
    excluded: frozenset[str] = frozenset()
    dropped: Counter[str] = field(default_factory=Counter)

    def get(self, name: str, size: tuple[int, int] | None = None) -> tuple[SampleImage, bytes | None] | None:
        """The picture and its bytes (None without a folder); None, counted, where it is missing, bad or excluded.

        `size` is what the annotations say; another displayed size is a picture of another file.
        """
        short = Path(name).name
        if short in self.excluded or re.sub(r"^COCO_\w+_", "", short) in self.excluded:
            self.dropped["pictures that are excluded"] += 1
            return None
        if self.folder is None:
            return SampleImage(short, *(size or UNKNOWN)), None
        path = next((p for p in (self.folder / name, self.folder / short) if p.is_file()), None)
        if path is None:
            self.dropped["pictures that are not in the folder"] += 1
            return None
        data = path.read_bytes()
        try:
            _, width, height = inspect_image(data)
        except ValueError:
            self.dropped["pictures that can't be decoded"] += 1
            return None
        if size is not None and size != (width, height):
            self.dropped["pictures of another displayed size than annotated"] += 1
            return None
        return SampleImage(short, width, height), data


def load_json(path: str | Path, what: str) -> Any:
    """A JSON file; ValueError with the byte where it ends too early."""
    try:
        text = Path(path).read_bytes().decode()
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: seen no UTF-8 at byte {error.start}, expected {what}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        byte = len(text[: error.pos].encode())
        raise ValueError(f"{path}: seen broken JSON at byte {byte} ({error.msg}), expected {what}") from None


def json_lines(path: str | Path, what: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; ValueError with the line."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield dict(json.loads(line))
                    except (ValueError, TypeError):
                        seen = line.strip()[:60]
                        raise ValueError(f"{path}:{number}: seen {seen!r}, expected {what}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected {what}") from None


def listed(value: Any, path: str | Path, keys: Sequence[str], what: str) -> list[dict[str, Any]]:
    """`value` when it is a list of objects that have `keys`."""
    if not isinstance(value, list):
        raise ValueError(f"{path}: seen a JSON {type(value).__name__}, expected {what}")
    for number, item in enumerate(value):
        if not isinstance(item, dict) or (missing := [key for key in keys if key not in item]):
            lost = keys[0] if not isinstance(item, dict) else missing[0]
            raise ValueError(f"{path}: item {number}: seen no {lost!r}, expected {what}")
    return value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names the class {module}.{name}")


def plain_pickles(path: str | Path, count: int) -> list[Any]:
    """The first `count` objects of a pickle file that holds plain values; any class in it is refused, none is made."""
    try:
        with open(path, "rb") as file:
            return [_load(file) for _ in range(count)]
    except FileNotFoundError:
        raise ValueError(f"{path}: seen no such file, expected a pickle of plain values") from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: seen {error}, expected a pickle of plain values") from None


def _load(file: IO[bytes]) -> Any:
    return _PlainUnpickler(file, encoding="latin1").load()


def clean(text: str) -> str:
    """Text without the placeholders that records give a meaning to; single spaces."""
    return REGION_MARK.sub("", " ".join(str(text).split()).replace(IMAGE_MARK, "")).strip()


def pick(template: str, key: str, **values: str) -> str:
    """One line of a template file, chosen by the key, with its slots filled."""
    lines = templates(template)
    line = lines[crc32(key.encode()) % len(lines)]
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    return line


def safe_key(*parts: Any) -> str:
    """A record key of letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(map(str, parts)))


def to_box(xyxy: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Pixels x1, y1, x2, y2 clipped to the picture, in [0, 1]; None where nothing is left, or for NaN."""
    if len(xyxy) != 4 or not all(isinstance(v, int | float) for v in xyxy):
        return None
    x1, y1, x2, y2 = (min(max(v / side, 0.0), 1.0) for v, side in zip(xyxy, (*size, *size), strict=True))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def from_xywh(xywh: Sequence[float]) -> list[float]:
    """x, y, width, height as x1, y1, x2, y2."""
    x, y, w, h = xywh
    return [x, y, x + w, y + h]


def make(
    source: str,
    key: str,
    pictures: Sequence[tuple[SampleImage, bytes | None]],
    turns: Sequence[tuple[str, str]],
    **fields: Any,
) -> Sample:
    """A sample of (question, answer) turns; one picture mark for each picture stands before the first question.

    Question texts must carry no picture mark. `answer` may be a string, region indices, or an `Answer`.
    """
    marks = "".join(f"{IMAGE_MARK}\n" for _ in pictures)
    made = [Turn(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    made[0].text = marks + made[0].text
    answer = fields.pop("answer", None)
    if isinstance(answer, str):
        answer = Answer(answer)
    elif isinstance(answer, list):
        answer = Answer(regions=answer)
    return Sample(
        id=f"{source}/{key}",
        key=safe_key(key),
        source=source,
        images=[image for image, _ in pictures],
        turns=made,
        answer=answer,
        image_bytes=[data for _, data in pictures if data is not None],
        **fields,
    )


def grounding(
    source: str, key: str, picture: tuple[SampleImage, bytes | None], phrase: str, box: Box, **fields: Any
) -> Sample:
    """A referring expression record: one phrase, one box."""
    category, area = fields.pop("category", None), fields.pop("area_px", None)
    prompt = pick("rec", key, phrase=phrase)
    region = SampleRegion(phrase=phrase, category=category, area_px=area, box=box)
    known = {"task": "grounding", "subtask": "rec", "regions": [region], "answer": [0]}
    return make(source, key, [picture], [(prompt, "{region:0}")], **(known | fields))
