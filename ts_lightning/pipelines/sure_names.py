"""Which names of a scene a person who looks at the picture would agree with, by its annotations and captions."""

import re
from collections import Counter

from ts_lightning.pipelines.claims import called
from ts_lightning.pipelines.english import be
from ts_lightning.pipelines.scenes import Scene, Thing, stem

KINDS_OF = {
    "animal": {"cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "bird"},
    "vehicle": {"car", "bus", "truck", "train", "motorcycle", "bicycle", "airplane", "boat"},
}
PEOPLE = {"person", "man", "woman", "boy", "girl", "child", "people", "player", "lady", "guy"}
ANIMATE = PEOPLE | KINDS_OF["animal"]
FOOD = {"banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"}
SURE = {  # kinds that annotators hardly mistake
    *(ANIMATE | KINDS_OF["vehicle"]),
    *("traffic light", "stop sign", "fire hydrant", "umbrella", "skis", "snowboard", "surfboard", "skateboard", "kite"),
    *("baseball bat", "tennis racket", "bed", "toilet", "laptop", "keyboard", "clock", "scissors", "toothbrush"),
}
ALIKE = (  # names that stand for each other, so that another one may be the leftmost or the largest
    {"car", "truck", "bus"},
    {"chair", "couch", "bench"},
    {"cup", "bowl", "wine glass", "bottle", "vase"},
    {"handbag", "backpack", "suitcase"},
)
# What an audience sits on, wears and holds: annotators mark a few of them, so that none is the only or leftmost one.
AUDIENCE = {"person", "chair", "bench", "tie", "handbag", "backpack", "umbrella", "cell phone", "cup", "bottle", "book"}
SEATS, FILLED = {"chair", "couch", "bench"}, 0.4  # a box that an outline of one fills less often holds several
CROWDED = 8  # people from which a picture has an audience
LARGER = 1.5
# Of what captions speak in such words, a picture shows more than is annotated, or the same thing twice.
UNCOUNTED = {"mirror", "reflection", "reflect", "reflected", "traffic", "crowd", "crowded", "busy", "fleet"}
_WORD = re.compile(r"[a-z]+")
_OTHER_TABLES = re.compile(r"\b(?:coffee|end|side|pool|night) tables?\b")


def unsure(scene: Scene) -> set[str]:
    """Names that nothing is asked about: crowds, what goes with many people, and what captions don't bear out.

    And those of which not all objects are annotated (LVIS): none of them is known to be the only or the leftmost one.
    Where a picture has captions, one of them has to name a thing of the household, which is often called after what it
    resembles. Of all things none may speak of several where one is annotated, and where several are, one has to: two
    annotations are often two parts of one thing. A seat's outline fills its box.
    """
    crowds = {thing.name for thing in scene.things if thing.crowd}
    count = Counter(thing.name for thing in scene.things)
    out = crowds | set(scene.meta.get("not_exhaustive") or ())
    out |= AUDIENCE if sum(count[name] for name in PEOPLE) >= CROWDED or crowds & PEOPLE else set()
    seats = [thing for thing in scene.things if thing.name in SEATS and thing.covers is not None]
    out |= {thing.name for thing in seats if (thing.covers or 0.0) < FILLED * area(thing)}
    captions = [set(_WORD.findall(_OTHER_TABLES.sub(" ", caption.lower()))) for caption in scene.captions]
    told = set().union(*captions)
    if {stem(word) for word in told} & UNCOUNTED:
        out |= {name for name, number in count.items() if number > 1}
    for name, number in count.items() if told else ():
        one, several = called(name, told)
        if name in PEOPLE and any(len(words & PEOPLE) > 1 for words in captions):
            several = True  # a man and a woman
        part = number > 1 and one and not several
        more = number == 1 and several and be(name) == "is"
        if part or more or (name not in SURE and not one and not several):
            out.add(name)
    return out


def rivals(scene: Scene, name: str) -> list[Thing]:
    """The things of a name, and those whose names stand for it."""
    alike = {name}.union(*(group for group in ALIKE if name in group))
    return [thing for thing in scene.things if thing.name in alike]


def area(thing: Thing) -> float:
    """A thing's share of the picture."""
    return (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])


def larger(one: Thing, other: Thing) -> bool:
    """Whether one thing is clearly larger than another, by its box and by its outline where both are known."""
    outlined = one.covers is None or other.covers is None or one.covers > other.covers
    return outlined and area(one) > LARGER * area(other)
