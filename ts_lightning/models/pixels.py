"""From the bytes of a picture to uint8 pixels of the model's size, upright, three times as fast as PIL's bicubic.

Photographs come out within one level of PIL (a few pixels in a million within two) where PIL resizes rows first;
Pillow 13 resizes the columns of some portrait pictures first, which moves saturated edges by a few levels.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ts_lightning.grounding.still_pictures import open_still, orientation, upright, upright_size

CLIP_MEAN = (122, 116, 104)
_STRIP = 1_000_000  # pixels converted at once


def load_pixels(
    data: bytes, size: int | tuple[int, int], mode: str = "stretch", fill: tuple[int, int, int] = CLIP_MEAN
) -> Tensor:
    """Decode, turn upright (EXIF), and resize a picture to uint8 RGB [3, size, size], or [3, *size] (height, width).

    `stretch` resizes both sides; `pad` first centres the picture on a square of the colour `fill` (0-255). Transparent
    pixels show `fill`. Raises a one-line ValueError for bytes that are no whole jpg, png or webp picture.
    """
    if mode not in ("stretch", "pad"):
        raise ValueError(f"mode: seen {mode!r}, expected 'stretch' or 'pad'")
    rgb_HW3 = torch.from_numpy(_decode(data, fill))
    if mode == "pad" and rgb_HW3.shape[0] != rgb_HW3.shape[1]:
        rgb_HW3 = _square(rgb_HW3, fill)
    return _resize(rgb_HW3, (size, size) if isinstance(size, int) else size)


def recent_pixels(data: bytes, size: int | tuple[int, int], mode: str = "stretch") -> Tensor:
    """`load_pixels`, kept for the questions of a record, which ask for its pictures in turn; to be read only."""
    return _recent(_Once(sha256(data).digest(), data), size, mode)


@dataclass(unsafe_hash=True)
class _Once:
    """A picture by its digest, that gives its bytes away: a cache keeps its keys, and files may have many megabytes."""

    digest: bytes
    data: bytes = field(compare=False)


@lru_cache(maxsize=8)
def _recent(picture: _Once, size: int | tuple[int, int], mode: str) -> Tensor:
    data, picture.data = picture.data, b""
    return load_pixels(data, size, mode)


def open_picture(data: bytes, fill: tuple[int, int, int] = CLIP_MEAN) -> Image.Image:
    """The picture as it is displayed: upright, RGB, of its own size; ValueError as in `load_pixels`."""
    return Image.fromarray(_decode(data, fill))


def image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the picture as it is displayed, without decoding it."""
    try:
        return upright_size(open_still(data))
    except Exception as error:
        raise _broken(data, error) from None


def _decode(data: bytes, fill: tuple[int, int, int]) -> np.ndarray:
    try:
        image = open_still(data)
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation(image) == 1:
            with suppress(ValueError):  # also where libjpeg only warns: what every viewer opens is for PIL to judge
                return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return _rgb(upright(image), fill)
    except Exception as error:  # decoders raise a dozen types on bad bytes; all mean the same to the caller
        raise _broken(data, error) from None


def _rgb(image: Image.Image, fill: tuple[int, int, int]) -> np.ndarray:
    """uint8 [H, W, 3], made in strips: a whole copy of a picture of 40 megapixels in each mode would take 800 MB."""
    rgb_HW3 = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb_HW3[top : top + strip.height] = np.asarray(_flat(strip, fill))
    return rgb_HW3


def _flat(image: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion to 8 bits clips instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, (*fill, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return image.convert("RGB")


def _resize(rgb_HW3: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    if rgb_HW3.shape[0] < height or rgb_HW3.shape[1] < width:  # torch's uint8 kernel is levels off where it enlarges
        enlarged = Image.fromarray(rgb_HW3.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(enlarged)).permute(2, 0, 1).contiguous()
    # a permuted view of HWC is channels_last, the layout with the fast kernel
    resized = F.interpolate(rgb_HW3.permute(2, 0, 1)[None], size, mode="bicubic", antialias=True)
    return resized[0].contiguous()


def _square(rgb_HW3: Tensor, fill: tuple[int, int, int]) -> Tensor:
    height, width, _ = rgb_HW3.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = torch.tensor(fill, dtype=torch.uint8).repeat(side, side, 1)
    square[top : top + height, left : left + width] = rgb_HW3
    return square


def _broken(data: bytes, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not recognised"  # PIL's own text holds an address in memory, another one each time
    return ValueError(f"image: seen {len(data)} bytes ({reason}), expected a whole jpg, png or webp picture")
