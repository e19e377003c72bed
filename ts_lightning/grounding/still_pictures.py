"""The one set of limits for pictures: what converting, indexing and training may use."""

import io
import warnings

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS, MAX_SIDE, MAX_ASPECT = 64_000_000, 32_768, 200  # above them a picture is an attack or a mistake


def open_still(data: bytes) -> Image.Image:
    """The picture, not decoded yet, where every part of the project may use it: one frame, within the limits.

    ValueError says what it is instead; PIL's own errors for other bytes.
    """
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if (
        width * height > MAX_PIXELS
        or max(width, height) > MAX_SIDE
        or max(width, height) > MAX_ASPECT * min(image.size)
    ):
        raise ValueError(
            f"{width} x {height} pixels; at most {MAX_PIXELS}, {MAX_SIDE} a side, {MAX_ASPECT} times as long"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # an MPO is a photograph with a preview behind it
        raise ValueError(f"{image.n_frames} frames; only still pictures")  # type: ignore[attr-defined]
    return image
