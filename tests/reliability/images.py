"""Item 10: more than forty kinds of picture. Each is decoded to the right pixels or refused in one line."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.reliability.tiny_run import sample
from ts_lightning.models.pixels import load_pixels

SIDE = 16
REFUSED = "refused"
_COLOUR = (200, 100, 50)


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def _plain(mode: str = "RGB", colour: Any = _COLOUR, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new(mode, size, colour)


def png_16_bit(values_HW: np.ndarray) -> bytes:
    """A 16-bit grey PNG, written by hand."""
    height, width = values_HW.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HW)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    parts = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels: a decompression bomb before it goes off."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(data)) + b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", 0)


def oriented(tag: int) -> tuple[bytes, np.ndarray]:
    """A PNG with an EXIF orientation, and the pixels as they are displayed."""
    image = _plain(size=(24, SIDE))
    image.paste((0, 0, 255), (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = tag
    steps = {2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}  # Image.Transpose, by the EXIF standard's table
    shown = image
    for step in steps.get(tag, []):
        shown = shown.transpose(Image.Transpose(step))
    return _bytes(image, "PNG", exif=exif), np.asarray(shown)


def kinds() -> dict[str, tuple[bytes, Any]]:
    """Name -> (bytes, expected: a colour, pixels [H, W, 3], or REFUSED)."""
    jpeg, png, webp = (_bytes(_plain(), kind) for kind in ("JPEG", "PNG", "WEBP"))
    big = _bytes(Image.effect_noise((200, 200), 60).convert("RGB"), "JPEG")
    exif_6 = oriented(6)[0]
    half = _plain("RGBA", (255, 0, 0, 0))
    palette = _plain("P", 3)
    palette.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, *_COLOUR])
    cases: dict[str, tuple[bytes, Any]] = {
        "jpeg": (jpeg, _COLOUR),
        "png": (png, _COLOUR),
        "webp": (webp, _COLOUR),
        "webp lossless": (_bytes(_plain(), "WEBP", lossless=True), _COLOUR),
        "jpeg progressive": (_bytes(_plain(), "JPEG", progressive=True), _COLOUR),
        "jpeg 4:4:4": (_bytes(_plain(), "JPEG", subsampling=0), _COLOUR),
        "jpeg grey": (_bytes(_plain("L", 77), "JPEG"), (77, 77, 77)),
        "jpeg CMYK": (_bytes(_plain("CMYK", (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
        "jpeg MPO": (_bytes(_plain(), "MPO", save_all=True, append_images=[_plain()]), _COLOUR),
        "png L": (_bytes(_plain("L", 77), "PNG"), (77, 77, 77)),
        "png LA": (_bytes(_plain("LA", (77, 255)), "PNG"), (77, 77, 77)),
        "png 1 bit": (_bytes(_plain("1", 1), "PNG"), (255, 255, 255)),
        "png palette": (_bytes(palette, "PNG"), _COLOUR),
        "png palette with transparency": (_bytes(palette, "PNG", transparency=3), (122, 116, 104)),
        "png RGBA opaque": (_bytes(_plain("RGBA", (*_COLOUR, 255)), "PNG"), _COLOUR),
        "png RGBA transparent": (_bytes(half, "PNG"), (122, 116, 104)),
        "webp RGBA transparent": (_bytes(half, "WEBP", lossless=True), (122, 116, 104)),
        "png 16 bit": (png_16_bit(np.full((SIDE, SIDE), 200 * 257)), (200, 200, 200)),
        "png 16 bit dark": (png_16_bit(np.full((SIDE, SIDE), 257)), (1, 1, 1)),
        "jpeg called png": (jpeg, _COLOUR),
        "bytes after the end": (jpeg + b"trailing", _COLOUR),
        "1 x 1": (_bytes(_plain(size=(1, 1)), "PNG"), _COLOUR),
        "aspect 1:200": (_bytes(_plain(size=(1, 200)), "PNG"), _COLOUR),
        **{f"EXIF {tag}": oriented(tag) for tag in range(1, 9)},
        "EXIF 9, unknown": (oriented(9)[0], oriented(1)[1]),
        "empty": (b"", REFUSED),
        "junk": (b"junk" * 100, REFUSED),
        "html called jpg": (b"<!DOCTYPE html><html><body>404</body></html>", REFUSED),
        "header alone": (b"\xff\xd8\xff\xe0", REFUSED),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', REFUSED),
        "gif": (_bytes(_plain("P", 3), "GIF"), REFUSED),
        "bmp": (_bytes(_plain(), "BMP"), REFUSED),
        "tiff": (_bytes(_plain(), "TIFF"), REFUSED),
        "ico": (_bytes(_plain(), "ICO"), REFUSED),
        "pdf": (b"%PDF-1.4", REFUSED),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", REFUSED),
        "jpeg cut in half": (big[: len(big) // 2], REFUSED),
        "jpeg 2 bytes short": (big[:-2], REFUSED),
        "png without its end mark": (png[:-12], None),  # all pixels are there
        "png cut": (png[:-30], REFUSED),
        "webp cut": (webp[:-10], REFUSED),
        "png with a wrong checksum": (png[:45] + bytes([png[45] ^ 1]) + png[46:], REFUSED),
        "png 0 x 0": (png_header(0, 0), REFUSED),
        "bomb 20000 x 20000": (png_header(20000, 20000), REFUSED),
        "bomb 9500 x 9500": (png_header(9500, 9500), REFUSED),
        "side of 60000": (png_header(60000, 1), REFUSED),
        "aspect 1:201": (_bytes(_plain(size=(1, 201)), "PNG"), REFUSED),
        "animated webp": (_bytes(_plain(), "WEBP", save_all=True, append_images=[_plain(colour=(1, 2, 3))]), REFUSED),
        "animated png": (_bytes(_plain(), "PNG", save_all=True, append_images=[_plain(colour=(1, 2, 3))]), REFUSED),
        "broken EXIF": (jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0junkjunk" + jpeg[2:], _COLOUR),
        "broken EXIF in png": (exif_6.replace(b"MM\0*", b"XX\0*"), None),
    }
    return cases


def corpus() -> dict[str, Any]:
    """The figures; AssertionError with the name of a kind that came out wrong."""
    cases, decoded, refused, either = kinds(), 0, 0, 0
    for name, (data, expected) in cases.items():
        seen = outcome(data, None if not isinstance(expected, np.ndarray) else expected.shape[:2])
        if expected is None:
            either += 1
        elif isinstance(expected, str):
            assert isinstance(seen, str), f"{name}: decoded, expected a refusal"
            refused += 1
        else:
            assert isinstance(seen, np.ndarray), f"{name}: {seen}"
            difference = np.abs(seen.astype(int) - np.asarray(expected)).max()
            assert difference <= 4, f"{name}: seen {seen[0, 0]}, off by {difference}"
            decoded += 1
    random_bytes = flipped(lambda data: outcome(data, None))
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = outcome(png_16_bit(grey), (64, 64))
    assert isinstance(pixels, np.ndarray)
    error = float(np.abs(pixels[..., 0] / 255 - grey / 65535).mean())
    assert error <= 1 / 255
    figures = {"kinds": len(cases), "decoded": decoded, "refused": refused, "either": either, "crashes": 0}
    return figures | {"mean_error_16_bit": round(error, 5), **random_bytes}


def outcome(data: bytes, size: tuple[int, int] | None) -> np.ndarray | str:
    """Pixels [H, W, 3], or the one line of a refusal; any other exception is a crash and goes through."""
    try:
        return load_pixels(data, size or SIDE).permute(1, 2, 0).numpy()
    except ValueError as refusal:
        text = str(refusal)
    assert "\n" not in text, text
    assert "seen" in text, text
    return text


def flipped(look: Callable[[bytes], Any], count: int = 300) -> dict[str, int]:
    """Random bytes of good pictures changed: never a crash. A decoder may not notice; the index's checksum does."""
    rng, unnoticed = random.Random(0), 0
    for number in range(count):
        data = bytearray(sample(number % 20).image_bytes[0])
        for _ in range(1 + number % 50):
            data[rng.randrange(len(data))] = rng.randrange(256)
        unnoticed += not isinstance(look(bytes(data)), str)
    return {"flipped": count, "decoded_all_the_same": unnoticed}
