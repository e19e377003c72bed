"""The pictures that visitors added: checked, kept in memory within a budget."""

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from ts_lightning.grounding.still_pictures import open_still, orientation
from ts_lightning.models.pixels import image_size, load_pixels

MAX_BYTES = 20 * 2**20
MAX_SIDE, MAX_PIXELS = 12_000, 40_000_000
VISITOR_BYTES, ALL_BYTES = 64 * 2**20, 128 * 2**20


def check_picture(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture that decodes to its end; ValueError in one line for a wrong or huge one."""
    width, height = image_size(data)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"image: seen {width} x {height} pixels, expected at most {MAX_SIDE} a side and {MAX_PIXELS:,} in all"
        )
    load_pixels(data, 32)  # a cut file has a good header
    return width, height


def check_shown(data: bytes) -> tuple[int, int]:
    """`check_picture` for the page: ValueError also for a picture that a browser shows in another way than we read it.

    Regions that are drawn on it would lie elsewhere: Chromium turns no WebP by its EXIF.
    """
    size = check_picture(data)
    image = open_still(data)
    if image.format == "WEBP" and (turned := orientation(image)) != 1:
        raise ValueError(f"image: seen a WebP with EXIF orientation {turned}, that browsers ignore, expected 1")
    return size


class Picture(NamedTuple):
    """The bytes of a picture, and its (width, height) as it is displayed."""

    data: bytes
    size: tuple[int, int]


class Pictures:
    """Pictures by a random name, each its visitor's alone.

    Above `visitor_bytes` a visitor's longest unused picture is forgotten; above `all_bytes` that of the visitor who
    keeps the most.
    """

    def __init__(self, visitor_bytes: int = VISITOR_BYTES, all_bytes: int = ALL_BYTES) -> None:
        self.visitor_bytes, self.all_bytes = visitor_bytes, all_bytes
        self._kept: dict[str, OrderedDict[str, Picture]] = {}

    def add(self, visitor: str, picture: Picture) -> str:
        """Keep a picture; its name."""
        name = secrets.token_urlsafe(16)
        self._kept.setdefault(visitor, OrderedDict())[name] = picture
        while self.size(visitor) > self.visitor_bytes:
            self._forget(visitor)
        while sum(map(self.size, self._kept)) > self.all_bytes:
            self._forget(max(self._kept, key=self.size))
        return name

    def get(self, visitor: str, name: str) -> Picture:
        """The picture; ValueError for a picture that is forgotten or another visitor's."""
        own: Mapping[str, Picture] = self._kept.get(visitor, {})
        if name not in own:
            raise ValueError("image: the server no longer has this picture, expected a new conversation with it")
        self._kept[visitor].move_to_end(name)
        return own[name]

    def size(self, visitor: str) -> int:
        """Bytes that a visitor keeps."""
        return sum(len(picture.data) for picture in self._kept.get(visitor, {}).values())

    def _forget(self, visitor: str) -> None:
        self._kept[visitor].popitem(last=False)
        if not self._kept[visitor]:
            del self._kept[visitor]
