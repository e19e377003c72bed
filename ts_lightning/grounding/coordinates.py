"""One owner for coordinates: the way from [0, 1] of the displayed image to the numbers in the text, and back."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

Point = tuple[float, float]
Size = tuple[int, int]
FRAMES = ("original", "padded_square", "resized")


@dataclass(frozen=True)
class CoordinateSpace:
    """What the numbers in prompts and answers mean.

    `grid`: "100", "999", "1000" or "1023" (integers 0..N), "decimals:n" or "pixels". `frame`: the image that the
    numbers refer to: "original" (displayed, EXIF applied), "padded_square" (centred on a square canvas) or "resized"
    (what the image processor makes; `resized` is its (width, height), or gives it for an image's size; given with
    "padded_square", it is what the square is resized to). Points are (x, y), sizes (width, height).
    """

    grid: str = "100"
    frame: str = "original"
    resized: Size | Callable[[Size], Size] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"100|999|1000|1023|pixels|decimals:[1-9]", self.grid):
            raise ValueError(
                f"CoordinateSpace.grid: seen {self.grid!r}, expected '100', '999', '1000', '1023', 'decimals:n' "
                "(n 1-9) or 'pixels'"
            )
        if self.frame not in FRAMES:
            raise ValueError(f"CoordinateSpace.frame: seen {self.frame!r}, expected one of {', '.join(FRAMES)}")

    def encode(self, points: Iterable[Point], image_size: Size | None = None) -> list[float]:
        """Flat list x, y, x, y ... of grid numbers for points in [0, 1] of the displayed image."""
        scale_x, scale_y = self._scale(image_size)
        framed = points if self.frame != "padded_square" else [self._to_frame(point, image_size) for point in points]
        decimals = self._decimals
        numbers: list[float] = []
        for x, y in framed:
            numbers += (x * scale_x, y * scale_y)
        return [round(n, decimals) for n in numbers] if decimals else [int(n + 0.5) for n in numbers]

    def decode(self, numbers: Iterable[float], image_size: Size | None = None) -> list[Point]:
        """Points in [0, 1] of the displayed image for a flat list of grid numbers, clipped to the image."""
        flat = list(numbers)
        scale_x, scale_y = self._scale(image_size)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        points = [(x / scale_x, y / scale_y) for x, y in pairs]
        if self.frame == "padded_square":
            points = [self._from_frame(point, image_size) for point in points]
        return [(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in points]

    def text(self, number: float) -> str:
        """One grid number as it is written in a prompt."""
        return f"{number:.{self._decimals}f}" if self._decimals else str(int(number))

    @cached_property
    def _decimals(self) -> int:
        return int(self.grid.removeprefix("decimals:")) if self.grid.startswith("decimals:") else 0

    def _scale(self, image_size: Size | None) -> tuple[float, float]:
        if self.grid.startswith("decimals:"):
            return 1.0, 1.0
        if self.grid != "pixels":
            return float(self.grid), float(self.grid)
        size = image_size
        if self.frame == "resized" or (self.frame == "padded_square" and self.resized is not None):
            size = self.resized(self._need(image_size, "resized")) if callable(self.resized) else self.resized
        width, height = self._need(size, "pixels")
        side = max(width, height)
        return (side, side) if self.frame == "padded_square" else (width, height)

    # Only padding changes relative coordinates; a resize keeps them.
    def _to_frame(self, point: Point, image_size: Size | None) -> Point:
        left, top, wide, high = self._padding(image_size)
        return left + point[0] * wide, top + point[1] * high

    def _from_frame(self, point: Point, image_size: Size | None) -> Point:
        left, top, wide, high = self._padding(image_size)
        return (point[0] - left) / wide, (point[1] - top) / high

    def _padding(self, image_size: Size | None) -> tuple[float, float, float, float]:
        width, height = self._need(image_size, "padded_square")
        side = max(width, height)
        return (side - width) / 2 / side, (side - height) / 2 / side, width / side, height / side

    @staticmethod
    def _need(size: Size | None, what: str) -> Size:
        if size is None:
            raise ValueError(f"CoordinateSpace: seen no image size, expected (width, height) for {what} coordinates")
        return size
