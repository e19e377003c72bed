"""A region of one image: a click, a box or a polygon."""

from dataclasses import dataclass

from ts_lightning.grounding.boxes import Box


@dataclass(frozen=True)
class Region:
    """N points in [0, 1] of the displayed image: 1 a click, 2 a box, 3 or more a polygon (ChatSpot 3.2)."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("Region.points: seen no point, expected at least 1")

    @classmethod
    def from_box(cls, box: Box) -> "Region":
        return cls(((box[0], box[1]), (box[2], box[3])))

    @property
    def kind(self) -> str:
        return {1: "click", 2: "box"}.get(len(self.points), "polygon")

    @property
    def box(self) -> Box:
        """The enclosing xyxy box (empty for a click)."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)
