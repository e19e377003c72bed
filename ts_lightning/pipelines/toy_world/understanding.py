"""Understanding questions: colour, shape, size, count, side, relation, yes/no, region to text, position in words."""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from ts_lightning.grounding.boxes import Box
from ts_lightning.pipelines.toy_world.scene import (
    COLORS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    attribute_phrases,
    relation_phrases,
)

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SUBTASKS = ("color", "shape", "size", "count", "side", "relation", "exists", "region")


class Question(NamedTuple):
    """One question; `regions` fill the placeholders `{region:i}` of its text."""

    subtask: str
    text: str
    answer: str
    regions: tuple[Box, ...] = ()


def understanding_questions(scene: Scene, random: Random) -> list[Question]:
    """One question of every subtask of `SUBTASKS` that the scene allows, in random order."""
    thing = random.choice(scene.things)
    makers = (_color, _shape, _size, _count, _side, _relation, _exists, _region)
    questions = [q for make in makers if (q := make(scene, thing, random)) is not None]
    random.shuffle(questions)
    return questions


def position_questions(scene: Scene, thing: Thing, random: Random) -> Iterator[Question]:
    """Where one object is and how large, in twentieths of the image, two words an answer; never a whole box."""
    if (phrase := refer(scene, thing, random)) is None:
        return
    x1, y1, x2, y2 = scene.box(thing)

    def ask(what: str, first: float, joint: str, second: float) -> Question:
        answer = f"{twentieths(first)} {joint} {twentieths(second)}"
        return Question("position", f"What is the {what} of the {phrase}?", answer)

    yield ask("range across", x1, "to", x2)
    yield ask("range down", y1, "to", y2)
    yield ask("corner", x1, "and", y1)
    yield ask("middle", (x1 + x2) / 2, "and", (y1 + y2) / 2)
    yield ask("size", x2 - x1, "by", y2 - y1)


def twentieths(value: float) -> str:
    """A length in [0, 1] in words, rounded to twentieths."""
    return NUMBERS[int(value * 20 + 0.5)]


def refer(scene: Scene, thing: Thing, random: Random, without: str = "") -> str | None:
    """A phrase that singles out `thing` and does not use the words in `without`."""
    relations = relation_phrases(scene, thing)
    phrases = [*attribute_phrases(scene, thing), *random.sample(relations, min(3, len(relations)))]
    banned = {"color": COLORS, "shape": SHAPES, "size": ("small", "large")}.get(without, ())
    phrases = [p for p in phrases if not any(word in banned for word in p.split(" of the ")[0].split())]
    return random.choice(phrases) if phrases else None


def _color(scene: Scene, thing: Thing, random: Random) -> Question | None:
    phrase = refer(scene, thing, random, without="color")
    return Question("color", f"What color is the {phrase}?", thing.color) if phrase else None


def _shape(scene: Scene, thing: Thing, random: Random) -> Question | None:
    phrase = refer(scene, thing, random, without="shape")
    return Question("shape", f"What shape is the {phrase}?", thing.shape) if phrase else None


def _size(scene: Scene, thing: Thing, random: Random) -> Question | None:
    phrase = refer(scene, thing, random, without="size")
    return Question("size", f"Is the {phrase} small or large?", thing.size) if phrase else None


def _count(scene: Scene, thing: Thing, random: Random) -> Question:
    kind = random.choice(("objects", "color", "shape"))
    if kind == "objects":
        return Question("count", "How many objects are there?", NUMBERS[len(scene.things)])
    word = getattr(thing, kind) if random.random() < 0.8 else random.choice(COLORS if kind == "color" else SHAPES)
    total = sum(getattr(t, kind) == word for t in scene.things)
    plural = f"{word} objects" if kind == "color" else word + ("es" if word == "cross" else "s")
    return Question("count", f"How many {plural} are there?", NUMBERS[total])


def _side(scene: Scene, thing: Thing, random: Random) -> Question | None:
    phrase = refer(scene, thing, random)
    axis = random.randrange(2)
    middle = scene.center(thing)[axis]
    if phrase is None or abs(middle - 0.5) < 0.06:
        return None
    words = ("left", "right") if axis == 0 else ("top", "bottom")
    return Question("side", f"Is the {phrase} on the {words[0]} or the {words[1]}?", words[middle > 0.5])


def _relation(scene: Scene, thing: Thing, random: Random) -> Question | None:
    others = [t for t in scene.things if t is not thing]
    random.shuffle(others)
    for other in others:
        names, anchors = attribute_phrases(scene, thing), attribute_phrases(scene, other)
        relation = random.choice(RELATIONS)
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
        holds = scene.related(thing, relation, other)
        if names and anchors and (holds or scene.related(thing, opposite, other)):
            text = f"Is the {random.choice(names)} {relation} the {random.choice(anchors)}?"
            return Question("relation", text, "yes" if holds else "no")
    return None


def _exists(scene: Scene, thing: Thing, random: Random) -> Question:
    color, shape = thing.color, thing.shape
    if random.random() < 0.5:
        color, shape = (random.choice(COLORS), shape) if random.random() < 0.5 else (color, random.choice(SHAPES))
    there = any(t.color == color and t.shape == shape for t in scene.things)
    article = "an" if color[0] in "aeiou" else "a"
    return Question("exists", f"Is there {article} {color} {shape}?", "yes" if there else "no")


def _region(scene: Scene, thing: Thing, random: Random) -> Question:
    box = scene.box(thing)
    kind = random.choice(("color", "shape", "size", "all"))
    if kind == "all":
        answer = f"{thing.size} {thing.color} {thing.shape}"
        return Question("region", "What is in {region:0}?", answer, (box,))
    if kind == "size":
        return Question("region", "Is the object in {region:0} small or large?", thing.size, (box,))
    return Question("region", f"What {kind} is in {{region:0}}?", getattr(thing, kind), (box,))
