"""Questions with stepwise answers that follow from annotated boxes alone."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, permutations
from random import Random
from typing import NamedTuple

from ts_lightning.pipelines.scenes import Scene, Thing, stem

COLORS = {
    *("black", "white", "gray", "grey", "red", "green", "blue", "yellow", "orange"),
    *("brown", "pink", "purple", "silver", "gold", "tan", "beige"),
}
CELLS = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]]
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PEOPLE = {"person", "man", "woman", "boy", "girl", "child", "people", "player", "lady", "guy"}
LEAST_SIDE = 0.02  # objects thinner than this part of the picture are not asked about
LARGER = 1.5
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
    crowds = {thing.name for thing in scene.things if thing.crowd}
    groups: dict[str, list[int]] = {}
    for i, thing in enumerate(scene.things):
        if not thing.crowd:
            groups.setdefault(thing.name, []).append(i)
    out = []
    for name, which in groups.items():
        if name in crowds:
            continue
        if len(which) == 1:
            out += [Ref(name, which[0])]
            continue
        by_x = sorted(which, key=lambda i: _center(scene.things[i])[0])
        (first, second), (last, before) = by_x[:2], by_x[:-3:-1]
        if _center(scene.things[second])[0] - _center(scene.things[first])[0] > 0.05:
            out.append(Ref(f"leftmost {name}", first))
        if _center(scene.things[last])[0] - _center(scene.things[before])[0] > 0.05:
            out.append(Ref(f"rightmost {name}", last))
        by_area = sorted(which, key=lambda i: -_area(scene.things[i]))
        if _area(scene.things[by_area[0]]) > LARGER * _area(scene.things[by_area[1]]):
            out.append(Ref(f"largest {name}", by_area[0]))
    return [ref for ref in out if _visible(scene.things[ref.thing])]


def facts(scene: Scene, random: Random, most: int) -> list[Fact]:
    """At most `most` different questions of a scene, mixed over the kinds, in an order that `random` draws."""
    refs = references(scene)
    kinds = [
        list(kind)
        for kind in (
            _places(scene, refs),
            _sides(scene, refs),
            _neighbours(scene, refs),
            _sizes(scene, refs),
            _counts(scene),
            _outermost(scene),
            _attributes(scene, refs),
            _links(scene, refs),
        )
    ]
    for kind in kinds:
        random.shuffle(kind)
    out: list[Fact] = []
    while len(out) < most and any(kinds):
        out += [kind.pop() for kind in kinds if kind]
    return out[:most]


def negatives(scene: Scene, vocabulary: list[str], random: Random, most: int) -> list[Fact]:
    """At most `most` questions about things of `vocabulary` that nothing in the scene names, with their refusals."""
    present = scene.words()
    absent = [name for name in vocabulary if not present & {stem(word) for word in name.lower().split()}]
    shown = references(scene)
    if not absent or not shown:
        return []
    out = []
    for name in random.sample(absent, min(most, len(absent))):
        ref = random.choice(shown)
        forms = [f"Where is the {name}?", f"What is next to the {name}?", f"Who is beside the {name}?"]
        forms.append(f"What is the {name} near the {ref.phrase} doing?")
        here = f"There is {article(ref.phrase)} {{{ref.thing}}} in the image, not {article(name)}."
        out.append(Fact(random.choice(forms), "", f"Step 1: Find the {name}. Step 2: {here} This question is invalid."))
    return out


def article(name: str) -> str:
    """A dog, an apple, the leftmost dog."""
    if name.split()[0] in ("leftmost", "rightmost", "largest"):
        return f"the {name}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def place(thing: Thing) -> str | None:
    """The ninth of the picture that the centre is clearly in, None near a border between two."""
    x, y = _center(thing)
    cells = []
    for value in (x, y):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < 0.02:
            return None
        cells.append(int(value * 3))
    return CELLS[min(cells[1], 2)][min(cells[0], 2)]


def _steps(*steps: str) -> str:
    return " ".join(f"Step {number}: {step}" for number, step in enumerate(steps, 1))


def _places(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    for name, i in refs:
        if cell := place(scene.things[i]):
            said = f"The {name} {{{i}}} is in the {cell} of the image."
            yield Fact(
                f"Where is the {name}?", cell, _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {cell}.")
            )


def _sides(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    for (a, i), (b, j) in permutations(refs, 2):
        sides = [how for how in SIDES if related(scene.things[i], how, scene.things[j])]
        if i != j and len(sides) == 1:
            how, word = sides[0], SIDES[sides[0]]
            checked = f"Check the {b}, got the {b} {{{j}}}."
            said = f"The {a} {{{i}}} is {how} the {b} {{{j}}}."
            steps = _steps(f"Find the {a} {{{i}}}.", checked, said, f"So the answer is {word}.")
            yield Fact(f"Where is the {a} in relation to the {b}?", word, steps)


def _neighbours(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    if any(thing.crowd for thing in scene.things):
        return
    for name, j in refs:
        for how in SIDES:
            found = [i for i, t in enumerate(scene.things) if i != j and related(t, how, scene.things[j])]
            if len(found) != 1 or not _visible(scene.things[found[0]]):
                continue
            i, answer = found[0], scene.things[found[0]].name
            if len(answer.split()) > 3 or (how in ("above", "below") and _overlap(scene, i, j) <= 0):
                continue
            said = f"The {answer} {{{i}}} is {how} the {name} {{{j}}}."
            checked = f"Check the object {how} it, got the {answer} {{{i}}}."
            steps = _steps(f"Find the {name} {{{j}}}.", checked, said, f"So the answer is {answer}.")
            yield Fact(f"{'Who' if answer in PEOPLE else 'What'} is {how} the {name}?", answer, steps)


def _overlap(scene: Scene, i: int, j: int) -> float:
    a, b = scene.things[i].box, scene.things[j].box
    return min(a[2], b[2]) - max(a[0], b[0])


def _sizes(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    for (a, i), (b, j) in combinations(refs, 2):
        first, second = _area(scene.things[i]), _area(scene.things[j])
        if i == j or max(first, second) <= LARGER * min(first, second) or a.split()[0] == "largest":
            continue
        for word in ("larger", "smaller"):
            big = (first > second) == (word == "larger")
            (x, ix), (y, iy) = ((a, i), (b, j)) if big else ((b, j), (a, i))
            if len(x.split()) > 3:
                continue
            found = (f"Find the {a} {{{i}}}.", f"Check the {b}, got the {b} {{{j}}}.")
            said = f"The {x} {{{ix}}} is {word} than the {y} {{{iy}}}."
            yield Fact(f"What is {word}, the {a} or the {b}?", x, _steps(*found, said, f"So the answer is {x}."))


def _counts(scene: Scene) -> Iterator[Fact]:
    crowds = {thing.name for thing in scene.things if thing.crowd}
    for name, number in Counter(thing.name for thing in scene.things).items():
        if 2 <= number <= 5 and name not in crowds:
            which = [i for i, thing in enumerate(scene.things) if thing.name == name]
            boxes, word = ", ".join(f"{{{i}}}" for i in which), NUMBERS[number]
            said = f"The number of {name} boxes {boxes} is {word}."
            steps = _steps(f"Find every {name} {boxes}.", said, f"So the answer is {word}.")
            yield Fact(f"What is the number of objects of the kind {name}?", word, steps)


def _outermost(scene: Scene) -> Iterator[Fact]:
    if any(thing.crowd for thing in scene.things) or len(scene.things) < 2:
        return
    ways = {
        "furthest to the left": 0,
        "furthest to the right": 2,
        "furthest to the top": 1,
        "furthest to the bottom": 3,
    }
    for how, edge in ways.items():
        sign = -1 if edge >= 2 else 1
        (first, i), (second, _), *_ = sorted((sign * thing.box[edge], i) for i, thing in enumerate(scene.things))
        thing = scene.things[i]
        if second - first > 0.05 and _visible(thing) and len(thing.name.split()) <= 3:
            steps = _steps(
                f"Find the object {how}, got the {thing.name} {{{i}}}.",
                f"The {thing.name} {{{i}}} is {how}.",
                f"So the answer is {thing.name}.",
            )
            yield Fact(f"{'Who' if thing.name in PEOPLE else 'What'} is {how} in the image?", thing.name, steps)


def _attributes(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    for name, i in refs:
        colors = [word for word in scene.things[i].words if word in COLORS]
        if len(colors) == 1:
            said = f"The {name} {{{i}}} is {colors[0]}."
            steps = _steps(f"Find the {name} {{{i}}}.", said, f"So the answer is {colors[0]}.")
            yield Fact(f"What color is the {name}?", colors[0], steps)


def _links(scene: Scene, refs: list[Ref]) -> Iterator[Fact]:
    """Annotated relationships: what does the man hold?"""
    names = {ref.thing: ref.phrase for ref in refs}
    for a, how, b in scene.relations:
        count = sum(1 for x, other, _ in scene.relations if (x, other) == (a, how))
        answer = scene.things[b].name
        if a in names and count == 1 and how and len(answer.split()) <= 3 and _visible(scene.things[b]):
            name = names[a]
            checked = f"Check what it is {how}, got the {answer} {{{b}}}."
            said = f"The {name} {{{a}}} is linked by {how} to the {answer} {{{b}}}."
            steps = _steps(f"Find the {name} {{{a}}}.", checked, said, f"So the answer is {answer}.")
            yield Fact(f"What goes with the {name} in: {name} {how} what?", answer, steps)


def _center(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def _area(thing: Thing) -> float:
    return (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])


def _visible(thing: Thing) -> bool:
    return min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) >= LEAST_SIDE
