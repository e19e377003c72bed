"""What the multi-image tasks do to scenes: move, recolour, enlarge objects, find room for one more."""

from dataclasses import replace
from random import Random

from ts_lightning.pipelines.toy_world.scene import COLORS, SIZES, Scene, Thing, apart, sample_scene

Pixels = tuple[int, int, int, int]


def kind_of(thing: Thing) -> tuple[str, str]:
    """Colour and shape."""
    return thing.color, thing.shape


def canvas_of(scene: Scene) -> tuple[int, int]:
    """Width and height in pixels."""
    return scene.width, scene.height


def scenes_from(seed: int, count: int) -> list[Scene]:
    """Scenes of at most three objects that no other seed has."""
    return [sample_scene(seed * 8 + i, max_objects=3) for i in range(count)]


def only_one(scene: Scene, kind: tuple[str, str]) -> Thing | None:
    """The one object of a kind; None where there is none or another."""
    found = [thing for thing in scene.things if kind_of(thing) == kind]
    return found[0] if len(found) == 1 else None


def is_free(pixels: Pixels, others: list[Pixels]) -> bool:
    """Whether a box keeps away from the others."""
    return all(apart(pixels, other) for other in others)


def free_spot(scene: Scene, wide: int, high: int, others: list[Pixels], random: Random) -> Pixels | None:
    """Room for a box of that size, or None."""
    for _ in range(30):
        x, y = random.randint(1, scene.width - wide - 1), random.randint(1, scene.height - high - 1)
        if is_free((x, y, x + wide, y + high), others):
            return x, y, x + wide, y + high
    return None


def placed(scene: Scene, kind: tuple[str, str], random: Random) -> Thing | None:
    """A new object of a kind with room around it, or None."""
    size = random.choice(tuple(SIZES))
    side = round(random.uniform(*SIZES[size]) * min(canvas_of(scene)))
    pixels = free_spot(scene, side, side, [thing.pixels for thing in scene.things], random)
    return None if pixels is None else Thing(kind[1], kind[0], size, pixels)


def recoloured(scene: Scene, random: Random) -> tuple[Scene, Thing]:
    """The scene with one object in a colour that it did not have, and that object."""
    old = random.choice(scene.things)
    new = replace(old, color=random.choice([c for c in COLORS if all(c != t.color for t in scene.things)]))
    return replace(scene, things=tuple(new if thing is old else thing for thing in scene.things)), new


def shuffled(scene: Scene, random: Random) -> Scene | None:
    """Every object at another place."""
    things: list[Thing] = []
    for thing in scene.things:
        x1, y1, x2, y2 = thing.pixels
        pixels = free_spot(scene, x2 - x1, y2 - y1, [t.pixels for t in things], random)
        if pixels is None:
            return None
        things.append(replace(thing, pixels=pixels))
    return replace(scene, things=tuple(things))


def drifted(scene: Scene, random: Random) -> Scene | None:
    """Every object a little further, none on another."""
    things: list[Thing] = []
    for thing in scene.things:
        x1, y1, x2, y2 = thing.pixels
        for _ in range(20):
            dx, dy = random.randint(-22, 22), random.randint(-22, 22)
            pixels = (x1 + dx, y1 + dy, x2 + dx, y2 + dy)
            inside = x1 + dx > 0 and y1 + dy > 0 and x2 + dx < scene.width and y2 + dy < scene.height
            if inside and is_free(pixels, [t.pixels for t in things]):
                things.append(replace(thing, pixels=pixels))
                break
        else:
            return None
    return replace(scene, things=tuple(things))


def filling(thing: Thing, scene: Scene) -> Thing:
    """The object as large as the picture allows."""
    return replace(thing, pixels=(6, 6, scene.width - 6, scene.height - 6))
