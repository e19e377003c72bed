"""What covers each patch of a scene, in words: the labels that the tiny base's vision tower is pre-trained on.

They are the words of the understanding questions: colour, shape, size, and the range across and down in twentieths.
"""

from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import COLORS, SHAPES, SIZES, Scene, Thing, sample_scene
from ts_lightning.pipelines.toy_world.understanding import NUMBERS, twentieths

LABELS = {"color": COLORS, "shape": SHAPES, "size": tuple(SIZES)}
RANGE_CLASSES = [len(NUMBERS) + 1] * 4
FIRST_PATCH_SEED = 8_000_000
BACKGROUND = 0


def patch_labels(scene: Scene, side: int) -> list[list[int]]:
    """[side * side][7] classes: colour, shape, size, left, right, top, bottom; 0 is background, else a word's number.

    A patch belongs to the object that covers most of it, if that is at least a quarter.
    """
    labels = []
    for row in range(side):
        for column in range(side):
            best, covered = None, 0.25
            for thing in scene.things:
                x1, y1, x2, y2 = scene.box(thing)
                wide = min(x2 * side, column + 1) - max(x1 * side, column)
                high = min(y2 * side, row + 1) - max(y1 * side, row)
                if wide > 0 and high > 0 and wide * high >= covered:
                    best, covered = thing, wide * high
            labels.append(_classes(scene, best) if best else [0] * 7)
    return labels


def _classes(scene: Scene, thing: Thing) -> list[int]:
    x1, y1, x2, y2 = (NUMBERS.index(twentieths(v)) + 1 for v in scene.box(thing))
    return [*(list(words).index(getattr(thing, name)) + 1 for name, words in LABELS.items()), x1, x2, y1, y2]


def labelled_picture(index: int, side: int) -> tuple[bytes, list[list[int]]]:
    """JPEG and patch labels of picture number `index`."""
    scene = sample_scene(FIRST_PATCH_SEED + index)
    return jpeg(render(scene)), patch_labels(scene, side)
