"""Several pictures of one question side by side, and where a box of one of them lies on the sheet."""

from collections.abc import Sequence

from PIL import Image

from ts_lightning.grounding.answer import Answer
from ts_lightning.grounding.boxes import Box
from ts_lightning.models.pixels import open_picture

GAP = 6


class Sheet:
    """Pictures in a row, top edges aligned; `picture` is the image, `place` maps boxes onto it."""

    def __init__(self, pictures: Sequence[bytes]) -> None:
        parts = [open_picture(data) for data in pictures]
        self.sizes = [part.size for part in parts]
        self.lefts = [sum(part.width + GAP for part in parts[:i]) for i in range(len(parts))]
        self.picture = Image.new("RGB", (self.lefts[-1] + parts[-1].width, max(part.height for part in parts)), "white")
        for left, part in zip(self.lefts, parts, strict=True):
            self.picture.paste(part, (left, 0))

    def place(self, image: int, box: Box) -> Box:
        """A box of picture `image`, [0, 1], in [0, 1] of the sheet."""
        (wide, high), left = self.sizes[image], self.lefts[image]
        x1, y1, x2, y2 = box
        width, height = self.picture.size
        return (left + x1 * wide) / width, y1 * high / height, (left + x2 * wide) / width, y2 * high / height

    def said(self, answer: Answer, unnamed: int = 0) -> list[list[Box]]:
        """The boxes of each step, on the pictures that they name (on `unnamed` where they name none)."""
        boxes: list[list[Box]] = [[] for _ in answer.steps]
        for thing in answer.objects:
            if thing.is_box:
                boxes[thing.step].append(self.place(unnamed if thing.image is None else thing.image, thing.box))
        return boxes
