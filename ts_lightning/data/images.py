"""What a picture's bytes say about it: format and displayed size."""

import io

from PIL import Image, UnidentifiedImageError

from ts_lightning.grounding.still_pictures import FORMATS, open_still, upright_size

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG with more pictures behind it


def inspect_image(data: bytes) -> tuple[str, int, int]:
    """(extension, width, height) of encoded bytes; the size is the displayed one, after EXIF rotation.

    The picture is decoded once (at low resolution where the format can), so cut files are found here.
    Raises ValueError for anything that is not a whole JPEG, PNG or WebP, one still picture within the limits.
    """
    try:
        with open_still(data) as image:
            width, height = upright_size(image)
            extension = _FORMATS[str(image.format)]
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))  # all bytes are read all the same
            image.load()
    except Exception as error:  # decoders raise a dozen types on bad bytes; all mean the same to the caller
        raise ValueError(
            f"image: seen {len(data)} bytes ({_reason(error)}), expected a whole JPEG, PNG or WebP"
        ) from None
    return extension, width, height


def displayed_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) after EXIF rotation, from the first bytes alone; None where they don't say."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return upright_size(image)
    except Exception:  # whoever decodes the picture says what is wrong with it
        return None


def sniff_extension(data: bytes) -> str:
    """The extension of encoded bytes by their first bytes alone; ValueError for an unknown format."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"image: seen bytes {data[:12]!r}, expected a JPEG, PNG or WebP")


def _reason(error: Exception) -> str:
    """What a decoder says, without the address of the bytes in memory: the same fault has the same line."""
    if isinstance(error, UnidentifiedImageError):
        return "not recognised"
    return " ".join(str(error).split()) or type(error).__name__
