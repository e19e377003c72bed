"""Scenes of one to six objects, sampled from a seed, and the phrases that single one of them out."""

from dataclasses import dataclass
from random import Random

from ts_lightning.grounding.boxes import Box

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = {"small": (0.20, 0.27), "large": (0.38, 0.50)}  # side, as a share of the image's shorter side
CANVASES = ((128, 128), (160, 120), (120, 160), (144, 112))
RELATIONS = ("left of", "right of", "above", "below")
OBJECTS = (28, 28, 20, 12, 7, 5)  # weights of 1 to 6 objects: most scenes have few
MARGIN = 0.08  # two centres must differ by this much for a relation to be said


@dataclass(frozen=True)
class Thing:
    """One object: its attributes and its box, pixels (x1, y1, x2, y2) with integer edges."""

    shape: str
    color: str
    size: str
    pixels: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """Objects on a canvas of (width, height) pixels; `seed` also draws the background."""

    seed: int
    width: int
    height: int
    things: tuple[Thing, ...]

    def box(self, thing: Thing) -> Box:
        """The object's box, xyxy in [0, 1]."""
        x1, y1, x2, y2 = thing.pixels
        return x1 / self.width, y1 / self.height, x2 / self.width, y2 / self.height

    def center(self, thing: Thing) -> tuple[float, float]:
        """The centre of the object's box in [0, 1]."""
        x1, y1, x2, y2 = self.box(thing)
        return (x1 + x2) / 2, (y1 + y2) / 2

    def related(self, a: Thing, relation: str, b: Thing) -> bool:
        """Whether `a` stands in `relation` to `b`, by the centres of their boxes."""
        (ax, ay), (bx, by) = self.center(a), self.center(b)
        gap = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[relation]
        return gap > MARGIN


def sample_scene(seed: int, max_objects: int = 6) -> Scene:
    """A scene that depends on nothing but `seed`."""
    random = Random(seed * 2 + 1)
    width, height = random.choice(CANVASES)
    wanted = random.choices(range(1, max_objects + 1), OBJECTS[:max_objects])[0]
    things: list[Thing] = []
    # Every third scene repeats a colour or a shape, so that phrases need more than one attribute.
    shapes = random.sample(SHAPES, 2) if random.random() < 0.35 else SHAPES
    colors = random.sample(COLORS, 2) if random.random() < 0.35 else COLORS
    for _ in range(wanted * 8):
        if len(things) == wanted:
            break
        size = random.choice(tuple(SIZES))
        side = random.uniform(*SIZES[size]) * min(width, height)
        stretch = random.uniform(0.85, 1.18)
        wide, high = round(side * stretch), round(side / stretch)
        x, y = random.randint(1, width - wide - 1), random.randint(1, height - high - 1)
        pixels = (x, y, x + wide, y + high)
        if all(apart(pixels, other.pixels) for other in things):
            things.append(Thing(random.choice(shapes), random.choice(colors), size, pixels))
    return Scene(seed, width, height, tuple(things))


def apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two pixel boxes are at least 2 pixels from each other."""
    return a[2] + 2 <= b[0] or b[2] + 2 <= a[0] or a[3] + 2 <= b[1] or b[3] + 2 <= a[1]


def attribute_phrases(scene: Scene, thing: Thing) -> list[str]:
    """Phrases of attributes alone that fit `thing` and no other object, shortest first ("red circle")."""
    phrases = []
    for use in (("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size", "color", "shape")):
        if sum(all(getattr(t, a) == getattr(thing, a) for a in use) for t in scene.things) == 1:
            words = [getattr(thing, a) for a in ("size", "color", "shape") if a in use]
            phrases.append(" ".join(words if "shape" in use else [*words, "object"]))
    return phrases


def relation_phrases(scene: Scene, thing: Thing) -> list[str]:
    """Phrases such as "red square left of the circle", unique only by the relation, or "leftmost square"."""
    phrases = []
    for use in (("shape",), ("color", "shape"), ("size", "shape")):
        rivals = [t for t in scene.things if all(getattr(t, a) == getattr(thing, a) for a in use)]
        if len(rivals) == 1:
            continue
        words = " ".join(getattr(thing, a) for a in ("size", "color", "shape") if a in use)
        phrases += [f"{word} {words}" for word in _superlatives(scene, thing, rivals)]
        for anchor in scene.things:
            if anchor in rivals or not (names := attribute_phrases(scene, anchor)):
                continue
            for relation in RELATIONS:
                if [t for t in rivals if scene.related(t, relation, anchor)] == [thing]:
                    phrases.append(f"{words} {relation} the {names[0]}")
    return phrases


def _superlatives(scene: Scene, thing: Thing, rivals: list[Thing]) -> list[str]:
    others = [t for t in rivals if t is not thing]
    words = {"left of": "leftmost", "right of": "rightmost", "above": "topmost", "below": "lowest"}
    return [word for rel, word in words.items() if all(scene.related(thing, rel, t) for t in others)]
