"""What covers each patch of a scene, in words: the labels that the tiny base's vision tower is pre-trained on."""

from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import COLORS, SHAPES, SIZES, Scene, sample_scene

LABELS = {"color": COLORS, "shape": SHAPES, "size": tuple(SIZES)}
FIRST_PATCH_SEED = 8_000_000
BACKGROUND = 0


def patch_labels(scene: Scene, side: int) -> list[list[int]]:
    """[side * side][3] classes of colour, shape and size; 0 is background, i + 1 the i-th word of `LABELS`.

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
            words = [getattr(best, name) if best else None for name in LABELS]
            labels.append([0 if w is None else list(LABELS[n]).index(w) + 1 for n, w in zip(LABELS, words, strict=True)])
    return labels


def labelled_picture(index: int, side: int) -> tuple[bytes, list[list[int]]]:
    """JPEG and patch labels of picture number `index`."""
    scene = sample_scene(FIRST_PATCH_SEED + index)
    return jpeg(render(scene)), patch_labels(scene, side)
