"""What converters share: reading files with one-line errors, pictures by name, samples with everything filled in."""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from ts_lightning.data.images import inspect_image
from ts_lightning.data.sample import IMAGE_MARK, REGION_MARK, Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.foreign_text import table_cell, visible
from ts_lightning.grounding.prompts import templates
from ts_lightning.pipelines.converters.files import Broken, load_json, read_text

UNKNOWN = (1000, 1000)  # the size of a picture that is not here and whose file does not say it
EXCLUDED = "pictures that are excluded"
NOT_HERE = "pictures that are not in the folder"
NO_BOX = "boxes that are no box inside the picture"
CLIPPED = "boxes that leave the picture and were clipped (kept)"
FRACTIONS = "boxes inside the first pixel (fractions, where pixels are expected)"
NO_SIZE = "photos whose width or height is no number above 0 (taken from the picture)"
TWICE = "rows whose id comes twice"
NO_ANNOTATION = "pictures without annotations"
BAD_ROW = "rows that lack a field, or have one of another kind"
MARKS = "rows with another number of picture marks than pictures"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COCO = re.compile(r"(?:COCO_\w+?_)?(\d{12})(?:_\d+)?")  # RefCOCO's refs name the annotation too
_KEPT = re.compile(r"\bkept\b|taken|\(read as|before the question")  # reasons of what was not left out
Picture = tuple[SampleImage, bytes | None]


class Stop(ValueError):
    """Ends a conversion, past every row's guard: the fault is the file's, or `strict` leaves nothing out."""


class LeftOut(Exception):
    """A row that is left out for a reason of its own; `seen` goes beside its name."""

    def __init__(self, reason: str, seen: str = "") -> None:
        super().__init__(reason)
        self.reason, self.seen = reason, seen


class Dropped(Counter[str]):
    """What was left out, counted by reason, with the first names of each; `strict` stops at the first one.

    All names go to the file `path`, a line each (reason, tab, name), once `close` says so. A name comes from files of
    strangers: it is written as one cell of a table, its control characters as escapes, and no
    formula for a spreadsheet.
    """

    def __init__(self, strict: bool = False, path: Path | None = None) -> None:
        super().__init__()
        self.strict, self.path = strict, path
        self.file: IO[str] | None = None
        self.names: dict[str, list[str]] = {}
        self.in_subset = 0  # photos that a subset of few objects holds

    def note(self, reason: str, name: object, stops: bool = True) -> None:
        """Count one; ValueError "NAME: REASON" under `strict` unless it is so by choice or kept (`stops` False)."""
        name = visible(name)
        if self.strict and stops:
            raise Stop(f"{name}: seen one of the {reason}, expected none (strict)")
        self[reason] += 1
        if len(names := self.names.setdefault(reason, [])) < 20:
            names.append(name)
        if self.path is not None:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = open(self.path.with_suffix(".tmp"), "w", encoding="utf-8")  # noqa: SIM115 (see `close`)
            self.file.write(f"{reason}\t{table_cell(name)}\n")

    @contextmanager
    def row(self, where: object) -> Iterator[None]:
        """Leaves out a row of a file that lacks what its layout has, or holds something of another kind there.

        The only guard of the converters: whatever a row raises is counted under the row's name.
        """
        try:
            yield
            return
        except (Stop, OSError):  # an unreadable disk is no fault of the row
            raise
        except LeftOut as error:
            self.note(error.reason, f"{where}: {error.seen}" if error.seen else where)
            return
        except Exception as error:  # what odd values raise has no end: a date, an infinite number, a list for a name
            seen = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        self.note(BAD_ROW, f"{where}: {seen}")

    def box(self, xyxy: Sequence[Any], size: tuple[int, int], name: object) -> Box | None:
        """Pixels x1, y1, x2, y2 in [0, 1] of a picture; None, counted, for none inside it. Clipped ones are counted.

        The size (1, 1) is for boxes that are parts of the picture already.
        """
        box, slack = to_box(xyxy, size), 1.0 if min(size) > 1 else 0.005
        if box is None:
            self.note(NO_BOX, name)
        elif max(xyxy[2:]) <= 1 < min(size):
            self.note(FRACTIONS, name)
            return None
        elif min(xyxy) < -slack or xyxy[2] > size[0] + slack or xyxy[3] > size[1] + slack:
            self.note(CLIPPED, name, stops=False)
        return box

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
            f"{'changed' if _KEPT.search(reason) else 'left out'}: {number} {reason}"
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
    excluded: "Excluded" = field(default_factory=lambda: Excluded())
    dropped: Dropped = field(default_factory=Dropped)
    subfolders: tuple[str, ...] = ()
    behind: "Pictures | None" = None  # where a picture is looked for that is not here
    _shared: Collection[str] = field(default=(), repr=False)  # names, without ending, that are never looked for there
    _named: dict[str, str | None] = field(default_factory=dict, repr=False)  # by last part; None: several names
    _listings: dict[Path, dict[str, Path | None]] = field(default_factory=dict, repr=False)

    def under(self, root: Path, *names: str) -> "Pictures":
        """These, also below `names`, or where no folder was given the pictures in those of `root/names` that exist.

        The names of another call, for another split, stay with what that call gave.
        """
        if self.folder is not None:
            return replace(self, subfolders=(*names, *self.subfolders), _named={})
        found = tuple(name for name in names if (root / name).is_dir())
        return Pictures(root if found else None, self.excluded, self.dropped, found)

    def beside(self, root: Path, shown: Iterable[object], *names: str) -> "Pictures":
        """`under`, or in `root` itself where one of the first hundred pictures `shown` by the file lies there."""
        known = [one for one in islice(shown, 100) if isinstance(one, str) and one and len(one) < 4000]
        return self.under(root, *names, *(["."] if any((root / name).is_file() for name in known) else []))

    def along(self, *parts: str, shared: Collection[str] = ()) -> "Pictures":
        """These, in the folder that goes with a folder `parts` of labels: the longest end of it that is below theirs.

        What is not in it is looked for in these themselves, but for names that several folders of labels have
        (`shared`, without ending): that would be another one's picture.
        """
        ends = [] if self.folder is None else [Path(self.folder, *parts[first:]) for first in range(len(parts))]
        for place in ends:
            if place.is_dir():
                return Pictures(place, self.excluded, self.dropped, behind=self, _shared=shared)
        return replace(self, _named={})

    @property
    def near(self) -> "Pictures":
        """These without the ones behind."""
        return replace(self, behind=None)

    @property
    def places(self) -> list[Path]:
        """The folders that they lie in."""
        return [] if self.folder is None else [self.folder, *(self.folder / sub for sub in self.subfolders)]

    def naming(self, names: Iterable[object]) -> "Pictures":
        """These, told all the names that a file uses: the last part of a name stands for it where it is unique."""
        for name in names:
            if isinstance(name, str):
                name = name.replace("\\", "/")
                short = name.rsplit("/", 1)[-1]
                if self._named.setdefault(short, name) != name:
                    self._named[short] = None
        return self

    def find(self, name: str) -> Path | None:
        """The file of a picture: by its whole name, or by the last part of it where no other name ends so.

        Then in another writing: the case of letters, composed or decomposed accents, no ending.
        """
        if self.folder is None:
            return None
        name = name.replace("\\", "/")
        short = name.rsplit("/", 1)[-1]
        places = self.places
        wholes = [place / name for place in places]
        if name != short:  # --images site_a with the name site_a/0001.jpg
            wholes += [place.parent / name for place in places if place.name == name.split("/")[0]]
        parts = [place / short for place in places] if self._named.setdefault(short, name) == name else []
        for path in dict.fromkeys((*wholes, *parts)):
            if path.is_file():
                return path
        for path in dict.fromkeys((*wholes, *parts)):
            if found := self._listing(path.parent).get(_folded(path.name)):
                return found
        if self.behind is not None and Path(short).stem not in self._shared:
            return self.behind.find(name)
        return None

    def _listing(self, place: Path) -> dict[str, Path | None]:
        """The files of a folder by folded name, with and without ending; None where several are meant."""
        if place not in self._listings:
            found: dict[str, Path | None] = {}
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.suffix.lower() in SUFFIXES:
                    for key in (_folded(path.name), _folded(path.stem)):
                        found[key] = None if key in found else path
            self._listings[place] = found
        return self._listings[place]

    def get(self, name: str, size: tuple[Any, Any] | None = None, also: str | None = None) -> Picture | None:
        """The picture and its bytes (None without a folder); None, counted, where it is missing, bad or excluded.

        `size` is what the annotations say, in whole pixels or text; another displayed size is a picture of another
        file, and what is no size is counted. `also` is the name of the same picture in another dataset, which may be
        excluded.
        """
        if not isinstance(name, str) or not name.strip() or "\0" in name or len(name.encode(errors="replace")) > 4000:
            raise ValueError(f"seen the picture name {name!r}, expected a file name")
        short = Path(name.replace("\\", "/")).name
        if self.excluded and any([self.is_excluded(one) for one in (short, also) if one]):
            self.dropped.note(EXCLUDED, short)
            return None
        if size is not None:
            sides = [pixels for side in size if (pixels := whole_pixels(side)) is not None]
            size = (sides[0], sides[1]) if len(sides) == 2 else None
            if size is None:
                self.dropped.note(NO_SIZE, name, stops=False)
        if self.folder is None:
            return SampleImage(short, *(size or UNKNOWN)), None
        path = self.find(name)
        if path is None:
            self.dropped.note(NOT_HERE, name)
            return None
        return self.packed(path.name, path.read_bytes(), size, name)

    def packed(
        self, name: str, data: bytes, size: tuple[int, int] | None = None, known_as: str | None = None
    ) -> Picture | None:
        """A picture whose bytes are at hand, as `get` gives it; `known_as` is what the list of left-outs calls it."""
        try:
            _, width, height = inspect_image(data)
        except ValueError as error:
            self.dropped.note(bad_picture(error), known_as or name)
            return None
        if size is not None and size != (width, height):
            turned = "turned by a quarter (EXIF?) against their annotations"
            reason = turned if size == (height, width) else "of another displayed size than annotated"
            self.dropped.note(f"pictures {reason}", known_as or name)
            return None
        return SampleImage(name, width, height), data

    def inside(self, name: str, data: bytes, published: str | None = None) -> Picture | None:
        """A picture whose bytes lie in its row, as `get` gives it; `published` is the name that may be excluded."""
        if self.is_excluded(published or name):
            self.dropped.note(EXCLUDED, name)
            return None
        return self.packed(name, data)

    def is_excluded(self, name: str) -> bool:
        """Whether the list names this picture, under COCO's 2014 or 2017 name, with or without its ending."""
        return self.excluded.holds(same_picture(name.replace("\\", "/")))


def without_annotations(wanted: Iterable[Pictures], labelled: Iterable[tuple[Pictures, Iterable[str]]]) -> None:
    """List the pictures in the folders of `wanted` that no annotation names, with or without its ending.

    `labelled` is (pictures, names) of every folder of annotations: several may go with one folder of pictures.
    """
    known: dict[Path, set[str]] = defaultdict(set)
    for pictures, names in labelled:
        folded = {_folded(name) for name in names}
        for place in [*pictures.places, *(pictures.behind.places if pictures.behind else ())]:
            known[place.resolve()] |= folded
    for place, dropped in {place.resolve(): one.dropped for one in wanted for place in one.places}.items():
        for path in files_of(place, "*"):
            if path.suffix.lower() in SUFFIXES and not {_folded(path.name), _folded(path.stem)} & known[place]:
                dropped.note(NO_ANNOTATION, path.name)


def same_picture(name: str) -> set[str]:
    """A picture's name with and without ending; of COCO's `COCO_train2014_000000000001.jpg` also `000000000001.jpg`.

    Other datasets number their pictures too (Flickr30k, Visual Genome), so that a bare number is no COCO picture.
    """
    stem = Path(name).stem
    match = _COCO.fullmatch(stem)
    return {Path(name).name, stem} | ({f"{match[1]}.jpg"} if match else set())


@dataclass
class Excluded:
    """Pictures that must not be used: every name that stands for one, by the entry of the list that it comes from."""

    entries: dict[str, str] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def holds(self, names: Iterable[str]) -> bool:
        """Whether the list has one of these names, which is then met."""
        found = [self.entries[name] for name in names if name in self.entries]
        self.met.update(found)
        return bool(found)

    def line(self) -> str:
        """How many entries of the list stood for a picture that the data set names."""
        number = len(set(self.entries.values()))
        return f"excluded pictures: {len(self.met)} of the {number} names of the list are in this data set"


def excluded_names(path: str | Path) -> Excluded:
    """Names of pictures (file names, or COCO's ids as bare numbers) from a file.

    A text with one or several a line (# begins a comment), a JSON list of names, ids or objects that have one, a COCO
    file, or a table whose header names the column. ValueError with the line where something is no name or id.
    """
    text = read_text(path, "names or ids of pictures, one a line").replace("\r", "\n")
    entries: dict[str, str] = {}
    if text.lstrip()[:1] in ("[", "{"):
        data = load_json(path, "a list of names or ids of pictures")
        items = data.get("images") if isinstance(data, dict) else data
        if not isinstance(items, list):
            raise ValueError(f"{path}: seen no list, expected names or ids of pictures")
        words = [(f"item {i}", one) for i, one in enumerate(items)]
    else:
        words = list(_cells(text))
    for place, value in words:
        if isinstance(value, dict):
            value = next((value[key] for key in _COLUMNS if key in value), value)
        word = str(value).strip()
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not (word and _NAME.fullmatch(word)):
            raise ValueError(f"{path}: {place}: seen {str(value)[:60]!r}, expected a picture's file name or COCO id")
        number = re.fullmatch(r"(\d{1,12})(\.0+)?", word, re.ASCII)
        for name in {coco_name(number[1])} if number else same_picture(word):
            entries.setdefault(name, coco_name(number[1]) if number else word)
    if not entries:
        raise ValueError(f"{path}: seen no name in it, expected names or ids of pictures, one a line")
    return Excluded(entries)


_COLUMNS = ("file_name", "filename", "image_id", "image", "name", "path", "id")
_NAME = re.compile(r"[^\[\]{}<>|*?\"':;=,\t]+")


def _cells(text: str) -> Iterator[tuple[str, str]]:
    """(place, word) of a text; of a table with a header the column of names, else every cell."""
    column: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        cells = [cell.strip().strip("\"'").strip() for cell in re.split(r"[,;\t]", line)]
        if number == 1 and (known := [cell for cell in _COLUMNS if cell in [one.lower() for one in cells]]):
            column = [one.lower() for one in cells].index(known[0])
            continue
        for cell in cells if column is None else cells[column : column + 1]:
            if cell:
                yield f"line {number}", cell


def bad_picture(error: ValueError) -> str:
    """The reason to leave a picture out, from what `inspect_image` says."""
    text = str(error)
    if "frames" in text:
        return "pictures that move (only still ones can be trained on)"
    if "at most" in text:
        return "pictures that are too large or too long-sided to be trained on"
    return "pictures that can't be decoded"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def whole(items: Iterable[dict[str, Any]], where: Path, dropped: Dropped) -> Iterator[dict[str, Any]]:
    """The items that can be read and told apart by what they hold; the others are counted."""
    for item in items:
        if isinstance(item, Broken):
            dropped.note(BAD_ROW, f"{where.name} {item.place}: {item.why}")
        else:
            yield item


def by_id(items: Iterable[dict[str, Any]], key: str, where: Path, dropped: Dropped) -> dict[Any, dict[str, Any]]:
    """The items by what `key` names; such without an id, and further ones of an id, are counted."""
    found: dict[Any, dict[str, Any]] = {}
    for number, item in enumerate(items):
        with dropped.row(f"{where.name} {item.place if isinstance(item, Broken) else f'item {number}'}"):
            one = item[key]
            if isinstance(one, bool) or not isinstance(one, int | float | str):
                raise TypeError(f"seen the {key} {str(one)[:40]!r}, expected a number or a text")
            if one in found:
                dropped.note(TWICE, f"{where.name} {key} {one}")
            found.setdefault(one, item)
    return found


def whole_pixels(value: Any) -> int | None:
    """A side in whole pixels, also where it is written as text; None for what is no number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number >= 1 and number.is_integer() else None


def coco_name(number: int | str) -> str:
    """The file of a COCO id in the releases of 2017."""
    return f"{int(number):012d}.jpg"


def files_of(folder: Path, *names: str) -> list[Path]:
    """The files of `folder/names` (globs), in order, but for hidden ones: what editors and file systems leave there."""
    files = {file: file.relative_to(folder).parts for name in names for file in folder.glob(name)}
    return sorted(file for file, parts in files.items() if not any(re.match(r"\.[^.]", part) for part in parts))


def need(folder: Path, *names: str) -> Path:
    """The first file of `folder/names` (globs) that exists; ValueError names what is missing."""
    for name in names:
        if files := files_of(folder, name):
            return files[0]
    seen = "no such folder" if not folder.is_dir() else f"no {names[0]}"
    raise ValueError(f"{folder}: seen {seen}, expected {' or '.join(names)} in it")


def stems(files: Sequence[Path]) -> dict[Path, str]:
    """What keys call each file: its name without ending, where no other file has that."""
    count = Counter(file.stem for file in files)
    return {file: file.stem if count[file.stem] == 1 else file.name for file in files}


def shared_stems(files: Iterable[Path]) -> set[str]:
    """The names without ending that several files have."""
    return {stem for stem, count in Counter(file.stem for file in files).items() if count > 1}


def located(path: str | Path, *names: str) -> tuple[Path, Path]:
    """(annotation file, folder): `path` itself where it is a file, else the first of `names` (globs) in it."""
    path = Path(path)
    return (path, path.parent) if path.is_file() else (need(path, *names), path)


def all_located(path: str | Path, *names: str) -> tuple[list[Path], Path]:
    """(annotation files, folder): all of `names` (globs) in the folder `path`, or the one file `path`."""
    path = Path(path)
    if not path.is_dir():
        return [path], path.parent
    need(path, *names)
    return files_of(path, *names), path


def clean(text: object) -> str:
    """Text as it is, with Unix line ends, without the placeholders that records give a meaning to.

    TypeError for what is neither text nor number: null or a list is no answer.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float) or text != text:
        raise TypeError(f"seen {str(text)[:40]!r}, expected a text")
    return REGION_MARK.sub("", str(text).replace(IMAGE_MARK, "").replace("\r\n", "\n").removeprefix("\ufeff"))


def pick(template: str, key: str, pictures: int = 1, **values: str) -> str:
    """One line of a template file, chosen by the key, with its slots filled; backslash n in it breaks the line.

    A line that says where its picture stands is for one picture.
    """
    lines = [line for line in templates(template) if pictures == 1 or IMAGE_MARK not in line]
    line = lines[crc32(key.encode()) % len(lines)].replace("\\n", "\n")
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    return line


def safe_key(*parts: Any) -> str:
    """A record key of letters, digits, - and _; a short hash stands for other characters in it."""
    name = "-".join(map(str, parts))
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    return key if key == name else f"{key}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def to_box(xyxy: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Pixels x1, y1, x2, y2 clipped to the picture, in [0, 1]; None where nothing is left, or for NaN."""
    if len(xyxy) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in xyxy) or min(size) <= 0:
        return None
    x1, y1, x2, y2 = (min(max(v / side, 0.0), 1.0) for v, side in zip(xyxy, (*size, *size), strict=True))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def from_xywh(xywh: Sequence[float]) -> list[float]:
    """x, y, width, height as x1, y1, x2, y2; [] for anything else."""
    if not isinstance(xywh, list | tuple) or len(xywh) != 4 or not all(isinstance(v, int | float) for v in xywh):
        return []
    x, y, w, h = xywh
    return [x, y, x + w, y + h]


def make(source: str, key: str, pictures: Sequence[Picture], turns: Sequence[tuple[str, str]], **fields: Any) -> Sample:
    """As `build`, and ValueError for a sample that is none."""
    sample = build(source, key, pictures, turns, **fields)
    sample.validate()  # inside the guard of its row
    return sample


def build(
    source: str,
    key: str,
    pictures: Sequence[Picture],
    turns: Sequence[tuple[str, str]],
    **fields: Any,
) -> Sample:
    """A sample of (question, answer) turns; a picture mark for each picture stands before the first question.

    Where the first question has its marks already, they stay where they are. `answer` may be a string, region
    indices, or an `Answer`.
    """
    marks = "" if IMAGE_MARK in turns[0][0] else f"{IMAGE_MARK}\n" * len(pictures)
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
    if not phrase.strip():
        raise ValueError("seen no expression, expected words")
    category, area = fields.pop("category", None), fields.pop("area_px", None)
    prompt = pick("rec", key, phrase=phrase)
    region = SampleRegion(phrase=phrase, category=category, area_px=area, box=box)
    known = {"task": "grounding", "subtask": "rec", "regions": [region], "answer": [0]}
    return make(source, key, [picture], [(prompt, "{region:0}")], **(known | fields))
