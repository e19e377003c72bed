"""What converters share: reading files with one-line errors, pictures by name, samples with everything filled in."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.prompts import templates

UNKNOWN = (1000, 1000)  # the size of a picture that is not here and whose file does not say it
NOT_HERE = "pictures that are not in the folder"
NO_BOX = "boxes that are no box inside the picture"
NO_ANNOTATION = "pictures without annotations"
_COCO = re.compile(r"(?:COCO_\w+?_)?(\d{12})(?:_\d+)?")  # RefCOCO's refs name the annotation too
Picture = tuple[SampleImage, bytes | None]


class Dropped(Counter[str]):
    """What was left out, counted by reason, with the first names of each; `strict` stops at the first one.

    All names go to the file `path`, a line each (reason, tab, name), once `close` says so.
    """

    def __init__(self, strict: bool = False, path: Path | None = None) -> None:
        super().__init__()
        self.strict, self.path = strict, path
        self.file: IO[str] | None = None
        self.names: dict[str, list[str]] = {}
        self.in_subset = 0  # photos that a subset of few objects holds

    def note(self, reason: str, name: object, stops: bool = True) -> None:
        """Count one; ValueError "NAME: REASON" under `strict` unless it is so by choice or kept (`stops` False)."""
        if self.strict and stops:
            raise ValueError(f"{name}: seen one of the {reason}, expected none (strict)")
        self[reason] += 1
        if len(names := self.names.setdefault(reason, [])) < 20:
            names.append(str(name))
        if self.path is not None:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path.with_suffix(".tmp"), "w", encoding="utf-8")  # noqa: SIM115 (see `close`)
            self.file.write(f"{reason}\t{name}\n")

    @contextmanager
    def row(self, where: object) -> Iterator[None]:
        """Leaves out a row of a file that lacks what its layout has, or holds something of another kind there."""
        try:
            yield
            return
        except (LookupError, TypeError, AttributeError) as error:
            seen = f"no {error}" if isinstance(error, KeyError) else str(error)
        self.note("rows that lack a field, or have one of another kind", f"{where}: {seen}")

    def close(self, keep: bool = True) -> None:
        """Put the list at `path`, in the place of an older one; or throw it away."""
        if keep and self.path is not None:
            self.path.unlink(missing_ok=True)
        if self.file is not None and self.path is not None:
            self.file.close()
            written = Path(self.file.name)
            written.rename(self.path) if keep else written.unlink()
            self.file = None

    def lines(self) -> list[str]:
        """The summary: one line a reason, with the first names."""
        return [
            f"left out: {number} {reason}"
            + (f" ({', '.join(names[:3])}{' ...' if number > 3 else ''})" if names else "")
            for reason, number in self.items()
            if number and ((names := self.names.get(reason, [])) or True)
        ]


@dataclass
class Pictures:
    """Pictures of a folder by file name; without a folder samples carry no bytes.

    `excluded` names pictures that must not be used (validation pictures of other sets). `dropped` counts what is left
    out, by reason.
    """

    folder: Path | None = None
    excluded: frozenset[str] = frozenset()
    dropped: Dropped = field(default_factory=Dropped)
    subfolders: tuple[str, ...] = ()

    def under(self, root: Path, *names: str) -> "Pictures":
        """These, or where no folder was given the pictures in those of `root/names` that exist."""
        if self.folder is not None:
            self.subfolders = (*self.subfolders, *names)
            return self
        found = tuple(name for name in names if (root / name).is_dir())
        return Pictures(root if found else None, self.excluded, self.dropped, found)

    def beside(self, root: Path, first: dict[str, Any], *names: str) -> "Pictures":
        """`under`, or in `root` itself where the pictures of the file's first row lie there."""
        known = first.get("image") or first.get("images") or []
        shown = [known] if isinstance(known, str) else [one for one in known if isinstance(one, str)]
        return self.under(root, *names, *(["."] if any((root / name).is_file() for name in shown) else []))

    def find(self, name: str) -> Path | None:
        """The file of a picture, by its name or the last part of it."""
        if self.folder is None:
            return None
        short = Path(name).name
        places = (self.folder, *(self.folder / sub for sub in self.subfolders))
        tries = (place / part for place in places for part in dict.fromkeys((name, short)))
        return next((path for path in tries if path.is_file()), None)

    def get(self, name: str, size: tuple[int, int] | None = None, also: str | None = None) -> Picture | None:
        """The picture and its bytes (None without a folder); None, counted, where it is missing, bad or excluded.

        `size` is what the annotations say; another displayed size is a picture of another file. `also` is the name of
        the same picture in another dataset, which may be excluded.
        """
        short = Path(name).name
        if self.excluded and any(self.is_excluded(one) for one in (short, also) if one):
            self.dropped.note("pictures that are excluded", short)
            return None
        if self.folder is None:
            return SampleImage(short, *(size or UNKNOWN)), None
        path = self.find(name)
        if path is None:
            self.dropped.note(NOT_HERE, name)
            return None
        data = path.read_bytes()
        try:
            _, width, height = inspect_image(data)
        except ValueError:
            self.dropped.note("pictures that can't be decoded", name)
            return None
        if size is not None and size != (width, height):
            self.dropped.note("pictures of another displayed size than annotated", name)
            return None
        return SampleImage(short, width, height), data

    def is_excluded(self, name: str) -> bool:
        """Whether the list names this picture, under COCO's 2014 or 2017 name, with or without its ending."""
        return not self.excluded.isdisjoint(same_picture(name))

    def without_annotations(self, names: Iterable[str], suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png")) -> None:
        """List the pictures of the folders that no annotation names."""
        if self.folder is None:
            return
        known = {Path(name).name for name in names}
        for place in dict.fromkeys((self.folder, *(self.folder / sub for sub in self.subfolders))):
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.suffix.lower() in suffixes and path.name not in known:
                    self.dropped.note(NO_ANNOTATION, path.name)


def same_picture(name: str) -> set[str]:
    """A picture's name with and without ending; of COCO's `COCO_train2014_000000000001.jpg` also `000000000001.jpg`.

    Other datasets number their pictures too (Flickr30k, Visual Genome), so that a bare number is no COCO picture.
    """
    stem = Path(name).stem
    match = _COCO.fullmatch(stem)
    return {Path(name).name, stem} | ({f"{match[1]}.jpg"} if match else set())


def excluded_names(path: str | Path) -> frozenset[str]:
    """Names of pictures from a text file, one a line: file names, or COCO's ids (bare numbers)."""
    names: set[str] = set()
    for line in map(str.strip, Path(path).read_text().splitlines()):
        if line:
            names |= {coco_name(line)} if line.isascii() and line.isdigit() else same_picture(line)
    return frozenset(names)


def coco_name(number: int | str) -> str:
    """The file of a COCO id in the releases of 2017."""
    return f"{int(number):012d}.jpg"


def need(folder: Path, *names: str) -> Path:
    """The first file of `folder/names` (globs) that exists; ValueError names what is missing."""
    for name in names:
        if found := sorted(folder.glob(name)):
            return found[0]
    seen = "no such folder" if not folder.is_dir() else f"no {names[0]}"
    raise ValueError(f"{folder}: seen {seen}, expected {' or '.join(names)} in it")


def located(path: str | Path, *names: str) -> tuple[Path, Path]:
    """(annotation file, folder): `path` itself where it is a file, else the first of `names` (globs) in it."""
    path = Path(path)
    return (path, path.parent) if path.is_file() else (need(path, *names), path)


def clean(text: object) -> str:
    """Text as it is, without the placeholders that records give a meaning to."""
    return REGION_MARK.sub("", str(text).replace(IMAGE_MARK, ""))


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
    """x, y, width, height as x1, y1, x2, y2; [] for anything else."""
    if not isinstance(xywh, list | tuple) or len(xywh) != 4 or not all(isinstance(v, int | float) for v in xywh):
        return []
    x, y, w, h = xywh
    return [x, y, x + w, y + h]


def make(
    source: str,
    key: str,
    pictures: Sequence[Picture],
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


def grounding(source: str, key: str, picture: Picture, phrase: str, box: Box, **fields: Any) -> Sample:
    """A referring expression record: one phrase, one box."""
    category, area = fields.pop("category", None), fields.pop("area_px", None)
    prompt = pick("rec", key, phrase=phrase)
    region = SampleRegion(phrase=phrase, category=category, area_px=area, box=box)
    known = {"task": "grounding", "subtask": "rec", "regions": [region], "answer": [0]}
    return make(source, key, [picture], [(prompt, "{region:0}")], **(known | fields))
