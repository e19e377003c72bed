"""Objects that the tiny base has never seen: outlines and names of a second domain, for what only tuning can add.

No lesson of the base has them, so a question for one is a guess. Guessing is made useless: a scene holds three or four
kinds of them, mostly in one colour, and phrases without a colour tell them apart by name, size or relation alone.
"""

from random import Random

from ts_lightning.pipelines.toy_world.scene import CANVASES, COLORS, SHAPES, SIZES, Scene, Thing, apart

OUTLINES: dict[str, list[tuple[float, float]]] = {
    "boat": [(0.4, 0), (0.95, 0.6), (1, 0.6), (0.8, 1), (0.2, 1), (0, 0.6), (0.4, 0.6)],
    "cup": [(0, 0), (0.7, 0), (0.7, 0.15), (1, 0.15), (1, 0.7), (0.6, 0.7), (0.55, 1), (0.15, 1)],
    "chair": [
        (0, 0),
        (0.25, 0),
        (0.25, 0.45),
        (1, 0.45),
        (1, 1),
        (0.75, 1),
        (0.75, 0.7),
        (0.25, 0.7),
        (0.25, 1),
        (0, 1),
    ],
    "umbrella": [(0, 0.5), (0.15, 0.15), (0.5, 0), (0.85, 0.15), (1, 0.5), (0.6, 0.5), (0.6, 1), (0.4, 1), (0.4, 0.5)],
    "fork": [
        *[(0, 0), (0.2, 0), (0.2, 0.4), (0.4, 0.4), (0.4, 0), (0.6, 0), (0.6, 0.4), (0.8, 0.4), (0.8, 0), (1, 0)],
        *[(1, 0.6), (0.62, 0.6), (0.62, 1), (0.38, 1), (0.38, 0.6), (0, 0.6)],
    ],
    "kite": [(0.5, 0), (1, 0.3), (0.5, 1), (0, 0.3)],
}
KINDS = tuple(OUTLINES)
# scenes of their own
FIRST_SEED = {"train": 40_000_000_000, "dev": 41_000_000_000, "val": 42_000_000_000, "test": 43_000_000_000}


def sample_new_scene(seed: int) -> Scene:
    """Three or four objects of new kinds, mostly all different, and at times a known one; depends on `seed` alone."""
    random = Random(seed * 2 + 1)
    width, height = random.choice(CANVASES)
    kinds = random.sample(KINDS, random.choice((3, 4)))
    if random.random() < 0.3:
        kinds[-1] = kinds[0]  # two of a kind: size or a relation tells them apart
    if random.random() < 0.4:
        kinds.append(random.choice(SHAPES))
    palette = random.sample(COLORS, 1 if random.random() < 0.7 else 3)
    things: list[Thing] = []
    for kind in kinds:
        for _ in range(30):
            size = random.choice(tuple(SIZES))
            side = random.uniform(*SIZES[size]) * min(width, height)
            stretch = random.uniform(0.85, 1.18)
            wide, high = round(side * stretch), round(side / stretch)
            x, y = random.randint(1, width - wide - 1), random.randint(1, height - high - 1)
            pixels = (x, y, x + wide, y + high)
            if all(apart(pixels, other.pixels) for other in things):
                things.append(Thing(kind, random.choice(palette), size, pixels))
                break
    return Scene(seed, width, height, tuple(things))
