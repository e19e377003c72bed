"""The one set of limits for pictures: what converting, indexing and training may use."""

import io
import warnings

from PIL import ExifTags, Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS, MAX_SIDE, MAX_ASPECT = 64_000_000, 32_768, 200  # above them a picture is an attack or a mistake


def header_fault(data: bytes) -> str | None:
    """What `open_still` would say against a picture, from its first bytes alone; None also where they don't say.

    Some microseconds: for indexing, which sees every picture.
    """
    if data[:2] == b"\xff\xd8":
        return _beyond(*_jpeg_size(data))
    if data[12:16] == b"IHDR":
        at = data.find(b"acTL", 33, max(33, data.find(b"IDAT")))
        frames = int.from_bytes(data[at + 4 : at + 8], "big") if at >= 0 else 1
        return _beyond(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), frames)
    kind = data[12:16] if data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8X":
        size = (1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
        return _beyond(*size, data.count(b"ANMF") if data[20] & 2 else 1)
    if kind == b"VP8 ":
        return _beyond(*(int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28)))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return _beyond(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the frame header behind the other markers; (1, 1) where there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8) + data[at + 3]
    return 1, 1


def _beyond(width: int, height: int, frames: int = 1) -> str | None:
    """Which limit a picture is beyond."""
    longer, shorter = max(width, height), min(width, height)
    if width * height > MAX_PIXELS or longer > MAX_SIDE or longer > MAX_ASPECT * shorter:
        return f"{width} x {height} pixels; at most {MAX_PIXELS}, {MAX_SIDE} a side, {MAX_ASPECT} times as long"
    return f"{frames} frames; only still pictures" if frames > 1 else None


def open_still(data: bytes) -> Image.Image:
    """The picture, not decoded yet, where every part of the project may use it: one frame, within the limits.

    ValueError says what it is instead; PIL's own errors for other bytes.
    """
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if why := _beyond(*image.size):
        raise ValueError(why)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # an MPO is a photograph and its preview
    if why := _beyond(1, 1, frames):
        raise ValueError(why)
    return image


def orientation(image: Image.Image) -> int:
    """How an opened picture is turned (EXIF, 1 to 8), read from what stands before its pixels; `upright` turns by it.

    Not `image.getexif()`: of a PNG without it that decodes everything, to look behind the pixels, too. A value of
    another kind (text, bytes) turns nothing, as in PIL.
    """
    found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return int(found) if found in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture as it is displayed, without decoding it."""
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)  # turned by a quarter


def upright(image: Image.Image) -> Image.Image:
    """An opened picture, decoded and turned as it is displayed, in place."""
    orientation(image)  # PIL keeps what this found, and does not look behind the pixels then
    ImageOps.exif_transpose(image, in_place=True)
    return image
