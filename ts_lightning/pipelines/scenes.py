"""What is known of a picture before a model writes about it: objects with boxes, captions, relations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from ts_lightning.data.sample import REGION_MARK, Sample, SampleImage
from ts_lightning.grounding.boxes import Box, iou

_WORD = re.compile(r"[a-z]+")
_ARTICLE = re.compile(r"^(?:an?|the|one|two|three|four|five|some|his|her|their|its)\s+")


@dataclass(frozen=True)
class Thing:
    """One annotated object: its category or phrase, its box, words that describe it.

    `covers` is the share of the picture that its outline covers, None where no outline is known.
    """

    name: str
    box: Box
    crowd: bool = False
    words: tuple[str, ...] = ()
    phrase: str = ""
    covers: float | None = None


@dataclass
class Scene:
    """One described picture. `boxed` is a caption with `{region:i}` marks of `groups` (indices of `things`).

    The record itself has the things of `groups`; further `things` and captions are those of other records of the
    picture (`scenes`). `relations` are (thing, predicate, thing) as annotated. `key` names it in records.
    """

    key: str
    image: SampleImage
    data: bytes
    things: list[Thing]
    captions: list[str] = field(default_factory=list)
    boxed: str | None = None
    groups: list[list[int]] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.width, self.image.height

    @property
    def own(self) -> set[int]:
        """The things that the scene's own record has."""
        return {i for group in self.groups for i in group}

    def words(self) -> set[str]:
        """Every word that names or describes something in the picture, plural endings cut."""
        texts = [*self.captions, *(f"{t.name} {t.phrase}" for t in self.things)]
        return {stem(word) for text in texts for word in _WORD.findall(text.lower())}

    def match(self, box: Box, least: float = 0.5) -> Thing | None:
        """The annotated object with the highest IoU, at least `least`."""
        best = max(self.things, key=lambda thing: iou(thing.box, box), default=None)
        return best if best is not None and iou(best.box, box) >= least else None


def picture_key(name: str, data: bytes) -> str:
    """What tells a picture from all others: its name and a hash of its bytes; two folders may have a 0001.jpg each."""
    return f"{name} {sha256(data).hexdigest()[:16]}"


def stem(word: str) -> str:
    """A word without the plural's ending: dogs, buses, ladies."""
    for ending, kept in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2 and not word.endswith(("ss", "us", "is")):
            return word.removesuffix(ending) + kept
    return word


def scene_of(sample: Sample) -> Scene | None:
    """The scene of a record that shows all objects (detection) or a caption with boxes; None for other records."""
    if len(sample.images) != 1 or len(sample.image_bytes) != 1 or sample.task == "understanding":
        return None
    if sample.subtask not in ("detection", "caption"):
        return None
    meta = sample.meta or {}
    things: list[Thing] = []
    groups: list[list[int]] = []
    attributes = meta.get("attributes") or [[]] * len(sample.regions)
    for region, words in zip(sample.regions, attributes, strict=True):
        boxes = region.boxes or ([region.box] if region.box else [])
        phrase = region.phrase or ""
        name = region.category if sample.subtask == "detection" and region.category else _bare(phrase)
        groups.append([*range(len(things), len(things) + len(boxes))])
        covers = None if region.area_px is None else region.area_px / (sample.images[0].width * sample.images[0].height)
        crowd, described = bool(region.iscrowd), tuple(words)
        things += [Thing(name or "object", box, crowd, described, phrase, covers) for box in boxes]
    first = [group[0] if group else -1 for group in groups]
    relations = [(first[a], str(how), first[b]) for a, how, b in meta.get("relationships") or []]
    captions = [str(text) for text in meta.get("captions") or []]
    boxed = sample.turns[1].text if sample.subtask == "caption" else None
    kept: dict[str, Any] = {name: meta[name] for name in ("image_id", "absent", "not_exhaustive") if name in meta}
    if not things:
        return None
    relations = [one for one in relations if one[0] >= 0 and one[2] >= 0]
    image, data = sample.images[0], sample.image_bytes[0]
    return Scene(sample.key, image, data, things, captions, boxed, groups, relations, kept)


def _bare(phrase: str) -> str:
    """A phrase without its article and number: `A man` is a man."""
    return _ARTICLE.sub("", phrase.lower()).strip()


def scenes(samples: Iterator[Sample]) -> Iterator[Scene]:
    """The scenes of records, in order; those of one picture, which follow each other, know each other's things.

    A caption speaks of a part of its picture: what it leaves out is not absent, and a box of it is not wrong.
    """
    found = (scene for sample in samples if (scene := scene_of(sample)) is not None)
    for _, group in groupby(found, lambda scene: (scene.image.name, scene.data)):
        yield from _joined([*group])


def _joined(alike: list[Scene]) -> list[Scene]:
    """Scenes of one picture, each with what the others know; a thing that is there keeps its scene's own name."""
    things = [*dict.fromkeys(thing for scene in alike for thing in scene.things)]
    captions = [caption for scene in alike for caption in scene.captions]
    for scene in alike if len(alike) > 1 else ():
        for thing in things:
            if scene.match(thing.box) is None:
                scene.things.append(thing)
        scene.captions = [*dict.fromkeys([*scene.captions, *captions])]
    return alike


def describe(scene: Scene) -> str:
    """The picture in words with pixel boxes, in the form of the papers' prompts: `A man [147, 145, 238, 333] ...`."""
    if scene.boxed is not None:
        marks = (pixels([scene.things[i] for i in group], scene.size) for group in scene.groups)
        texts = [*marks]
        return REGION_MARK.sub(lambda match: texts[int(match[1])], scene.boxed)
    by_name: dict[str, list[Thing]] = {}
    for thing in scene.things:
        if not thing.crowd:
            by_name.setdefault(thing.phrase or thing.name, []).append(thing)
    said = ", ".join(f"{name} {pixels(things, scene.size)}" for name, things in by_name.items())
    told = "".join(f" {caption.rstrip('.')}." for caption in scene.captions[:2])
    links = "".join(
        f" The {scene.things[a].name} {how} the {scene.things[b].name}." for a, how, b in scene.relations[:12]
    )
    return f"{said}.{told}{links}"


def pixels(things: list[Thing], size: tuple[int, int]) -> str:
    """Boxes as `[x1, y1, x2, y2]` of pixels, several in one more pair of brackets."""
    width, height = size
    boxes = []
    for thing in things:
        x1, y1, x2, y2 = thing.box
        boxes.append(f"[{round(x1 * width)}, {round(y1 * height)}, {round(x2 * width)}, {round(y2 * height)}]")
    return boxes[0] if len(boxes) == 1 else f"[{', '.join(boxes)}]"


TEMPLATES = Path(__file__).parent / "templates"


def template(name: str, folder: str | Path | None = None) -> str:
    """The text of an editable prompt file, NAME.txt of `folder` (None: `TEMPLATES`)."""
    path = Path(folder or TEMPLATES, f"{name}.txt")
    if not path.is_file():
        raise ValueError(f"templates: seen no file {path}, expected an edited copy of {TEMPLATES}")
    return path.read_text()


def prompts(names: Sequence[str], folder: str | Path | None = None) -> tuple[dict[str, str], str]:
    """`template`s by name, and the hash of their texts that records note."""
    texts = {name: template(name, folder) for name in names}
    return texts, sha256("\0".join(texts.values()).encode()).hexdigest()[:16]
