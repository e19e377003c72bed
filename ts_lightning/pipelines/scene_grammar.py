"""Questions with stepwise answers that follow from annotated boxes alone."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, permutations
from random import Random
from typing import NamedTuple

from ts_lightning.pipelines.english import NUMBERS, article, be, plural
from ts_lightning.pipelines.scenes import Scene, Thing, stem
from ts_lightning.pipelines.sure_names import ANIMATE, FOOD, KINDS_OF, PEOPLE, area, larger, rivals, unsure

COLORS = {
    *("black", "white", "gray", "grey", "red", "green", "blue", "yellow", "orange"),
    *("brown", "pink", "purple", "silver", "gold", "tan", "beige"),
}
CELLS = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]]
ON = {"on", "in", "behind", "near", "under", "above", "next to", "in front of", "on top of", "beside", "inside"}
THEMES = [  # things that go together: a refusal about one of them is plausible
    {"fork", "knife", "spoon", "bowl", "cup", "bottle", "wine glass", "dining table", "cake", "pizza", "sandwich"},
    {"oven", "microwave", "refrigerator", "sink", "toaster", "bottle", "cup", "bowl", "banana", "apple", "orange"},
    {"car", "bus", "truck", "bicycle", "motorcycle", "traffic light", "stop sign", "parking meter", "fire hydrant"},
    {"couch", "chair", "tv", "remote", "potted plant", "book", "vase", "clock", "bed", "dining table", "cat", "dog"},
    {"laptop", "keyboard", "mouse", "tv", "cell phone", "book", "cup", "chair"},
    {"toilet", "sink", "toothbrush", "hair drier", "bottle"},
    {"sports ball", "tennis racket", "baseball bat", "baseball glove", "frisbee", "kite", "bench"},
    {"skis", "snowboard", "backpack", "person"},
    {"surfboard", "boat", "bird", "kite", "umbrella"},
    {"horse", "sheep", "cow", "dog", "bird", "bench"},
    {"elephant", "zebra", "giraffe", "bear", "bird"},
    {"handbag", "backpack", "suitcase", "umbrella", "tie", "cell phone", "person"},
    {"broccoli", "carrot", "pizza", "sandwich", "hot dog", "donut", "cake", "fork", "knife"},
]
LEAST_SIDE, LEAST_AREA = 0.04, 0.02  # of the picture: smaller things are not asked about, their names are less sure
APART = 0.05  # of the picture between the centres of an outermost thing and the next one
BORDER = 0.04  # of the picture, about the lines between its ninths
NEAR = 0.25  # of the picture between neighbours
MOST_COUNTED = 6
SIDES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


class Fact(NamedTuple):
    """A question, its short answer, and steps in which `{i}` is the box of thing i."""

    question: str
    answer: str
    steps: str


class Ref(NamedTuple):
    """A phrase that singles out one thing of a scene."""

    phrase: str
    thing: int


def related(a: Thing, how: str, b: Thing) -> bool:
    """Whether a lies clear of b on that side."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    return {
        "to the left of": ax2 <= bx1,
        "to the right of": bx2 <= ax1,
        "above": ay2 <= by1,
        "below": by2 <= ay1,
    }[how]


def references(scene: Scene) -> list[Ref]:
    """The category where it occurs once; else the outermost and the largest of a category, where that is clear."""
    doubtful = unsure(scene)
    groups: dict[str, list[int]] = {}
    for i, thing in enumerate(scene.things):
        if not thing.crowd:
            groups.setdefault(thing.name, []).append(i)
    out = []
    for name, which in groups.items():
        if name in doubtful:
            continue
        if len(which) == 1:
            out += [Ref(name, which[0])]
            continue
        things, first = rivals(scene, name), {}
        for edge, side in ((0, "leftmost"), (2, "rightmost")):
            sign = 1 - edge
            by_x = sorted(things, key=lambda thing: sign * _center(thing)[0])
            clear = abs(_center(by_x[1])[0] - _center(by_x[0])[0]) > APART
            if clear and all(sign * by_x[0].box[edge] <= sign * thing.box[edge] for thing in things):
                first[side] = by_x[0]
        by_area = sorted(things, key=area, reverse=True)
        if all(larger(by_area[0], thing) for thing in by_area[1:]):
            first["largest"] = by_area[0]
        for side, thing in first.items():
            out += [Ref(f"{side} {name}", i) for i in which if scene.things[i] is thing]
    return [ref for ref in out if _visible(scene.things[ref.thing])]


def facts(scene: Scene, random: Random, most: int) -> list[Fact]:
    """At most `most` different questions of a scene, mixed over the kinds, in an order that `random` draws.

    Each question is put in one of several ways, drawn by `random` too.
    """
    refs = references(scene)
    kinds = [
        list(kind)
        for kind in (
            _places(scene, refs, random),
            _halves(scene, refs, random),
            _corners(scene, refs, random),
            _sides(scene, refs, random),
            _neighbours(scene, refs, random),
            _sizes(scene, refs, random),
            _counts(scene, random),
            _outermost(scene, refs, random),
            _further(scene, refs, random),
            _attributes(scene, refs, random),
            _links(scene, refs),
            _wider(scene, random),
        )
    ]
    for kind in kinds:
        random.shuffle(kind)
    out: list[Fact] = []
    while len(out) < most and any(kinds):
        out += [kind.pop() for kind in kinds if kind]
    return out[:most]


def negatives(scene: Scene, vocabulary: list[str], random: Random, most: int) -> list[Fact]:
    """At most `most` questions about things of `vocabulary` that nothing in the scene names, with their refusals.

    Things that go with what is there (`THEMES`) come first. Of federated annotations only what was looked for is known
    to be absent.
    """
    present = scene.words()
    known = scene.meta.get("absent")
    absent = [name for name in vocabulary if not present & {stem(word) for word in name.lower().split()}]
    absent = absent if known is None else [name for name in absent if name in known]
    shown = references(scene)
    if not absent or not shown:
        return []
    there = {thing.name for thing in scene.things}
    likely = {name for theme in THEMES if there & theme for name in theme}
    first = [name for name in absent if name in likely]
    rest = [name for name in absent if name not in likely]
    names = [*random.sample(first, len(first)), *random.sample(rest, len(rest))][:most]
    out = []
    for name in names:
        ref = random.choice(shown)
        forms = [f"Where {be(name)} the {name}?", f"What is next to the {name}?", f"What color {be(name)} the {name}?"]
        forms += [f"Which side of the picture {be(name)} the {name} on?", f"What is in front of the {name}?"]
        if name in ANIMATE:
            forms = [f"What is the {name} near the {ref.phrase} doing?", f"Who is beside the {name}?", forms[0]]
        shown_name = scene.things[ref.thing].name
        here = f"There {be(shown_name)} {article(shown_name)} {{{ref.thing}}} in the image, not {article(name)}."
        out.append(Fact(random.choice(forms), "", f"Step 1: Find the {name}. Step 2: {here} This question is invalid."))
    return out


def place(thing: Thing) -> str | None:
    """The ninth of the picture that the centre is clearly in, None near a border between two."""
    x, y = _center(thing)
    cells = []
    for value in (x, y):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < BORDER:
            return None
        cells.append(int(value * 3))
    return CELLS[min(cells[1], 2)][min(cells[0], 2)]


def _steps(*steps: str) -> str:
    return " ".join(f"Step {number}: {step}" for number, step in enumerate(steps, 1))


def _places(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    for name, i in refs:
        if cell := place(scene.things[i]):
            forms = [
                f"Where {be(name)} the {name}?",
                f"In which part of the picture {be(name)} the {name}?",
                f"Whereabouts in the image {be(name)} the {name}?",
                f"Where in the picture can you see the {name}?",
                f"Which part of the photo shows the {name}?",
            ]
            said = f"The {name} {{{i}}} {be(name)} in the {cell} of the image."
            steps = _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {cell}.")
            yield Fact(random.choice(forms), cell, steps)


def _halves(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """The half of the picture that all of a thing is in."""
    for name, i in refs:
        x1, y1, x2, y2 = scene.things[i].box
        for first, second, low, high in (("left", "right", x1, x2), ("top", "bottom", y1, y2)):
            if high > 0.5 and low < 0.5:
                continue
            half = first if high <= 0.5 else second
            forms = [
                f"{be(name).capitalize()} the {name} in the {first} or in the {second} half of the picture?",
                f"Which half of the image {be(name)} the {name} in, the {first} or the {second} one?",
            ]
            said = f"The {name} {{{i}}} {be(name)} in the {half} half of the image."
            steps = _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {half} half.")
            yield Fact(random.choice(forms), f"{half} half", steps)


def _corners(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """The corner of the picture whose quarter all of a thing is in."""
    for name, i in refs:
        x1, y1, x2, y2 = scene.things[i].box
        if (x1 < 0.5 < x2) or (y1 < 0.5 < y2):
            continue
        corner = f"{'top' if y2 <= 0.5 else 'bottom'} {'left' if x2 <= 0.5 else 'right'}"
        forms = [
            f"Which corner of the picture {be(name)} the {name} closest to?",
            f"What corner of the image {be(name)} the {name} nearest?",
        ]
        said = f"The {name} {{{i}}} {be(name)} closest to the {corner} corner of the image."
        steps = _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {corner}.")
        yield Fact(random.choice(forms), corner, steps)


def _sides(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """On which side of another thing a thing is; of one that is askew to it, only with both answers named."""
    for (a, i), (b, j) in permutations(refs, 2):
        sides = [how for how in SIDES if i != j and related(scene.things[i], how, scene.things[j])]
        for how in sides:
            word = SIDES[how]
            level = word in ("left", "right")
            ways = "to the left or to the right of" if level else "above or below"
            forms = [f"{be(a).capitalize()} the {a} {ways} the {b}?"]
            if len(sides) == 1:
                forms += [
                    f"Where {be(a)} the {a} in relation to the {b}?",
                    f"Where {be(a)} the {a}, seen from the {b}?",
                ]
                forms += [f"On which side of the {b} {be(a)} the {a}?"] if level else []
            checked = f"Check the {b}, got the {b} {{{j}}}."
            said = f"The {a} {{{i}}} {be(a)} {how} the {b} {{{j}}}."
            steps = _steps(f"Find the {a} {{{i}}}.", checked, said, f"So the answer is {word}.")
            yield Fact(random.choice(forms), word, steps)


def _neighbours(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    if any(thing.crowd for thing in scene.things):
        return
    doubtful = unsure(scene)
    for name, j in refs:
        for how in SIDES:
            found = [i for i, t in enumerate(scene.things) if i != j and related(t, how, scene.things[j])]
            if len(found) != 1 or not _visible(scene.things[found[0]]):
                continue
            i, answer = found[0], scene.things[found[0]].name
            if answer == scene.things[j].name or answer in doubtful or len(answer.split()) > 3:
                continue
            if not _beside(scene.things[i], scene.things[j], how):
                continue
            forms = [
                f"What is {how} the {name}?",
                f"Which object is {how} the {name}?",
                f"What can be seen {how} the {name}?",
                f"Can you name the thing {how} the {name}?",
            ]
            if answer in PEOPLE:
                forms = [f"Who is {how} the {name}?", f"Who can be seen {how} the {name}?"]
            said = f"The {answer} {{{i}}} {be(answer)} {how} the {name} {{{j}}}."
            checked = f"Check the object {how} it, got the {answer} {{{i}}}."
            last = f"So the answer is {answer} {{{i}}}."
            yield Fact(random.choice(forms), answer, _steps(f"Find the {name} {{{j}}}.", checked, said, last))


def _beside(one: Thing, other: Thing, how: str) -> bool:
    """Whether two things face each other and lie close together: what stands far off is nobody's neighbour."""
    along, across = (0, 1) if how in ("to the left of", "to the right of") else (1, 0)
    a, b = one.box, other.box
    facing = min(a[across + 2], b[across + 2]) > max(a[across], b[across])
    return facing and max(a[along], b[along]) - min(a[along + 2], b[along + 2]) <= NEAR


def _sizes(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """Larger and smaller between things of one kind; between two kinds only how much of the picture they take up.

    A near cup looks larger than a far truck.
    """
    for (a, i), (b, j) in combinations(refs, 2):
        one, two = scene.things[i], scene.things[j]
        if i == j or not (larger(one, two) or larger(two, one)) or "largest" in (a.split()[0], b.split()[0]):
            continue
        kind = one.name
        for word in ("larger", "smaller"):
            big = larger(one, two) == (word == "larger")
            (x, ix), (y, iy) = ((a, i), (b, j)) if big else ((b, j), (a, i))
            if len(x.split()) > 3:
                continue
            found = (f"Find the {a} {{{i}}}.", f"Check the {b}, got the {b} {{{j}}}.")
            if kind == two.name:
                forms = [f"Which {kind} looks {word}, the {a.split()[0]} or the {b.split()[0]} one?"]
                if sum(thing.name == kind for thing in scene.things) == 2:
                    forms += [f"Which of the two {plural(kind)} looks {word}, the {a} or the {b}?"]
                verb = "look" if be(x) == "are" else "looks"
                said = f"The {x} {{{ix}}} {verb} {word} than the {y} {{{iy}}}."
            else:
                much = "more" if word == "larger" else "less"
                forms = [
                    f"What takes up {much} of the picture, the {a} or the {b}?",
                    f"Which covers {much} of the image, the {a} or the {b}?",
                ]
                verb = "take up" if be(x) == "are" else "takes up"
                said = f"The {x} {{{ix}}} {verb} {much} of the picture than the {y} {{{iy}}}."
            yield Fact(random.choice(forms), x, _steps(*found, said, f"So the answer is {x} {{{ix}}}."))


def _counts(scene: Scene, random: Random) -> Iterator[Fact]:
    doubtful = unsure(scene) | FOOD  # food comes in bunches
    for name, number in Counter(thing.name for thing in scene.things).items():
        which = [i for i, thing in enumerate(scene.things) if thing.name == name]
        known = name not in doubtful and len(rivals(scene, name)) == number
        if known and 2 <= number <= MOST_COUNTED and all(_visible(scene.things[i]) for i in which):
            boxes, word, many = ", ".join(f"{{{i}}}" for i in which), NUMBERS[number], plural(name)
            forms = [
                f"How many {many} are there in the picture?",
                f"How many {many} can you see?",
                f"How many {many} are visible?",
                f"What is the number of {many} in the image?",
            ]
            steps = _steps(
                f"Find every {name} {boxes}.", f"There are {word} {many} {boxes}.", f"So the answer is {word}."
            )
            yield Fact(random.choice(forms), word, steps)


def _outermost(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """Which of three named things is outermost: of all that a picture shows, the annotations know too little."""
    single = [ref for ref in refs if ref.phrase == scene.things[ref.thing].name and len(ref.phrase.split()) <= 3]
    ends = ("furthest to the left", "furthest to the right", "nearest to the top", "nearest to the bottom")
    for how, end in zip(SIDES, ends, strict=True):
        for first in single:
            clear = [two for two in single if related(scene.things[first.thing], how, scene.things[two.thing])]
            if len(clear) < 2:
                continue
            rest = random.sample(clear, 2)
            shuffled = random.sample([first, *rest], 3)
            a, b, c = (f"the {ref.phrase}" for ref in shuffled)
            forms = [f"Which is {end} in the picture: {a}, {b} or {c}?", f"Of {a}, {b} and {c}, which is {end}?"]
            marked = [f"the {ref.phrase} {{{ref.thing}}}" for ref in shuffled]
            found = f"Find {marked[0]}, {marked[1]} and {marked[2]}."
            name, i = first
            said = [f"The {name} {{{i}}} {be(name)} {how} the {ref.phrase} {{{ref.thing}}}." for ref in rest]
            yield Fact(random.choice(forms), name, _steps(found, *said, f"So the answer is {name} {{{i}}}."))


def _further(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    """Which of two things is further to a side."""
    for (a, i), (b, j) in permutations(refs, 2):
        for how, end in zip(SIDES, ("to the left", "to the right", "up", "down"), strict=True):
            if i == j or not related(scene.things[i], how, scene.things[j]) or len(a.split()) > 3:
                continue
            x, y = random.sample([a, b], 2)
            forms = [f"Which is further {end}, the {x} or the {y}?", f"Of the {x} and the {y}, which is further {end}?"]
            checked = f"Check the {b}, got the {b} {{{j}}}."
            said = f"The {a} {{{i}}} {be(a)} {how} the {b} {{{j}}}."
            last = f"So the answer is {a} {{{i}}}."
            yield Fact(random.choice(forms), a, _steps(f"Find the {a} {{{i}}}.", checked, said, last))


def _attributes(scene: Scene, refs: list[Ref], random: Random) -> Iterator[Fact]:
    for name, i in refs:
        colors = [word for word in scene.things[i].words if word in COLORS]
        if len(colors) == 1:
            forms = [
                f"What color {be(name)} the {name}?",
                f"What is the color of the {name}?",
                f"Which color {'do' if be(name) == 'are' else 'does'} the {name} have?",
            ]
            said = f"The {name} {{{i}}} {be(name)} {colors[0]}."
            steps = _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {colors[0]}.")
            yield Fact(random.choice(forms), colors[0], steps)


def _links(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    """Annotated relationships, both ways: what is the man holding, who is holding the umbrella?"""
    names = {ref.thing: ref.phrase for ref in refs}
    for a, how, b in scene.relations:
        one, two = scene.things[a], scene.things[b]
        verb = how if how in ON or how.split()[0].endswith("ing") else None
        if verb is None or one.crowd or two.crowd:
            continue
        last = f"The {one.name} {{{a}}} {be(one.name)} {verb} the {two.name} {{{b}}}."
        of_one = sum((x, other) == (a, how) for x, other, _ in scene.relations) == 1
        to_two = sum((other, y) == (how, b) for _, other, y in scene.relations) == 1
        if a in names and of_one and _visible(two) and len(two.name.split()) <= 3:
            checked = f"Check the {two.name}, got the {two.name} {{{b}}}."
            steps = _steps(f"Find the {names[a]} {{{a}}}.", checked, last, f"So the answer is {two.name} {{{b}}}.")
            yield Fact(f"What {be(names[a])} the {names[a]} {verb}?", two.name, steps)
        if b in names and to_two and _visible(one) and len(one.name.split()) <= 3:
            checked = f"Check the {one.name}, got the {one.name} {{{a}}}."
            steps = _steps(f"Find the {names[b]} {{{b}}}.", checked, last, f"So the answer is {one.name} {{{a}}}.")
            yield Fact(f"{'Who' if one.name in PEOPLE else 'What'} is {verb} the {names[b]}?", one.name, steps)


def _wider(scene: Scene, random: Random) -> Iterator[Fact]:
    """The one animal or vehicle of a picture: which is it?"""
    for word in ("animal", "vehicle"):
        which = [i for i, thing in enumerate(scene.things) if thing.name in KINDS_OF[word]]
        if KINDS_OF[word] & {*(scene.meta.get("not_exhaustive") or ())}:
            continue
        if len(which) == 1 and not scene.things[which[0]].crowd and _visible(scene.things[which[0]]):
            i, name = which[0], scene.things[which[0]].name
            forms = [f"What kind of {word} is in the picture?", f"Which {word} can be seen in the image?"]
            steps = _steps(
                f"Find the {word} {{{i}}}.",
                f"The {word} {{{i}}} is {article(name)}.",
                f"So the answer is {name} {{{i}}}.",
            )
            yield Fact(random.choice(forms), name, steps)


def _center(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def _visible(thing: Thing) -> bool:
    thin = min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) < LEAST_SIDE
    return not thin and area(thing) >= LEAST_AREA
