"""Pictures of scenes: textured backgrounds, flat objects that touch all four edges of their boxes, JPEG."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from ts_lightning.pipelines.toy_world import new_objects
from ts_lightning.pipelines.toy_world.scene import Scene

RGB = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 215, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.42] * 5
    points = [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    xs, ys = zip(*points, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


_A, _B = 0.33, 0.67
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "cross": [
        *[(_A, 0), (_B, 0), (_B, _A), (1, _A), (1, _B), (_B, _B)],
        *[(_B, 1), (_A, 1), (_A, _B), (0, _B), (0, _A), (_A, _A)],
    ],
    **new_objects.OUTLINES,
}


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture; the same pixels for the same scene."""
    noise = np.random.default_rng(scene.seed)
    tint = noise.integers(95, 175, size=3)
    coarse = np.clip(tint + noise.normal(0, 14, size=(8, 8, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((scene.width, scene.height), Image.Resampling.BILINEAR)
    grain = noise.integers(-6, 7, size=(scene.height, scene.width, 1), dtype=np.int16)
    picture = Image.fromarray(np.clip(np.asarray(picture, dtype=np.int16) + grain, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        x1, y1, x2, y2 = thing.pixels
        wide, high = x2 - x1 - 1, y2 - y1 - 1  # PIL draws the last pixel too
        if thing.shape == "circle":
            draw.ellipse((x1, y1, x1 + wide, y1 + high), fill=RGB[thing.color])
        else:
            draw.polygon([(x1 + u * wide, y1 + v * high) for u, v in OUTLINES[thing.shape]], fill=RGB[thing.color])
    return picture


def jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    """The picture as JPEG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
