"""Pixels against PIL and against transformers' image processor; odd formats, orientation, broken bytes.

Bitwise: one value of a pixel after the other.
"""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from transformers import CLIPImageProcessorPil

from ts_lightning.data.images import displayed_size, inspect_image
from ts_lightning.models import pixels
from ts_lightning.models.pixels import image_size, load_pixels, recent_pixels

SIZE = 56


def photo(width: int = 203, height: int = 151) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.normal(0, 8, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pil_pixels(data: bytes) -> torch.Tensor:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return torch.from_numpy(np.array(image.resize((SIZE, SIZE), Image.BICUBIC))).permute(2, 0, 1)


def worst(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("shape", [(203, 151), (40, 300), (30, 20), (640, 480)])
def test_jpeg_within_one_level_of_pil_and_of_transformers(shape: tuple[int, int], subsampling: int) -> None:
    data = encode(photo(*shape), quality=90, subsampling=subsampling)
    ours = load_pixels(data, SIZE)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    assert worst(ours, pil_pixels(data)) <= 1
    processor = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, do_normalize=False, do_rescale=False
    )
    theirs = processor(Image.open(io.BytesIO(data)), return_tensors="pt").pixel_values[0]
    assert worst(ours, theirs.round()) <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_png_and_webp(format: str) -> None:
    data = encode(photo(), format)
    assert worst(load_pixels(data, SIZE), pil_pixels(data)) <= 1
    assert image_size(data) == (203, 151)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_other_colour_modes(mode: str) -> None:
    data = encode(photo().convert(mode), "PNG" if mode in ("P", "1") else "JPEG")
    assert worst(load_pixels(data, SIZE), pil_pixels(data)) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(photo(80, 40), format, exif=exif)
    assert worst(load_pixels(data, SIZE), pil_pixels(data)) <= 1
    assert image_size(data) == ((40, 80) if orientation >= 5 else (80, 40))


def test_the_size_of_a_png_is_read_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: PngImagePlugin.PngImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    data = encode(photo(80, 40), "PNG")
    assert image_size(data) == displayed_size(data) == (80, 40)


def test_an_orientation_behind_the_pixels_turns_neither_a_size_nor_the_picture() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(photo(80, 40), "PNG")
    late = data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert pixels.open_picture(late).size == image_size(late) == displayed_size(late) == (80, 40)
    assert inspect_image(late) == ("png", 80, 40)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(1, 1, b"\1"), (7, 1, b"\1"), (2, 1, b""), (2, 2, b"6"), (5, 1, b"")],
    ids=["byte", "undefined", "empty text", "text", "0/0"],
)
def test_an_orientation_that_is_no_number_turns_nothing(kind: int, count: int, value: bytes) -> None:
    entry = struct.pack("<HHI", 0x112, kind, count) + value.ljust(4, b"\0")
    if kind == 5:
        entry = entry[:8] + struct.pack("<I", 26)  # the place of numerator and denominator, both 0
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4) + bytes(8)
    data = encode(photo(80, 40), "JPEG", exif=exif)
    assert pixels.open_picture(data).size == image_size(data) == displayed_size(data) == (80, 40)
    assert inspect_image(data) == ("jpg", 80, 40)
    assert worst(load_pixels(data, SIZE), pil_pixels(data)) <= 1


def test_16_bit_png_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = load_pixels(encode(Image.fromarray(values), "PNG"), 64)
    expected = torch.from_numpy((values / 257).round())
    assert (pixels.double() - expected).abs().max() <= 1
    assert pixels.double().mean().item() == pytest.approx(127.5, abs=0.5)


def test_transparent_pixels_show_the_fill_colour() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 10, 20))
    pixels = load_pixels(encode(image, "PNG"), 20, fill=(1, 2, 3))
    assert pixels[:, 10, 2].tolist() == [0, 0, 255]
    assert pixels[:, 10, 17].tolist() == [1, 2, 3]


def test_pad_centres_on_the_fill_colour() -> None:
    wide = load_pixels(encode(Image.new("RGB", (41, 21), (200, 100, 50)), "PNG"), 41, mode="pad", fill=(9, 8, 7))
    assert wide[:, 20, 20].tolist() == [200, 100, 50]
    assert wide[:, :10].flatten(1).unique(dim=1).squeeze(1).tolist() == [9, 8, 7]
    assert wide[:, 31:].flatten(1).unique(dim=1).squeeze(1).tolist() == [9, 8, 7]
    assert wide[:, 10:31].flatten(1).unique(dim=1).squeeze(1).tolist() == [200, 100, 50]


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encode(photo())[:-20],
        encode(photo())[:600],
        encode(photo(), "PNG")[:-500],
        encode(photo(), "WEBP")[:-500],
        encode(photo(), "GIF"),
        bomb(10_000),
        bomb(20_000),
    ],
    ids=["empty", "text", "jpeg cut", "jpeg header", "png cut", "webp cut", "gif", "bomb", "big bomb"],
)
def test_broken_bytes_give_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^image: seen \d+ bytes .*expected a whole jpg, png or webp") as caught:
        load_pixels(data, SIZE)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_raise_nothing_but_value_error() -> None:
    rng = np.random.default_rng(0)
    for data in (encode(photo(60, 40)), encode(photo(60, 40), "PNG"), encode(photo(60, 40), "WEBP")):
        for _ in range(100):
            broken = bytearray(data)
            for position in rng.integers(0, len(data), 20):
                broken[position] = rng.integers(256)
            with suppress(ValueError):
                assert load_pixels(bytes(broken), 28).shape == (3, 28, 28)


def accepted(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_damaged_jpeg_has_one_verdict_for_the_data_and_the_model(options: dict[str, object]) -> None:
    """Neither less than what every viewer opens, nor more: what converting keeps must not stop a run."""
    data = encode(photo(), quality=80, **options)
    scan, end = data.index(b"\xff\xda"), data.rindex(b"\xff\xd9")
    random = np.random.default_rng(0)
    verdicts = []
    for place, value in zip(random.integers(2, end, 150), random.integers(0, 256, 150), strict=True):
        for damaged in (data[:place] + bytes([value]) + data[place + 1 :], data[:place]):
            verdicts.append(accepted(inspect_image, damaged))
            assert accepted(lambda one: load_pixels(one, SIZE), damaged) == verdicts[-1], (place, value)
    assert 30 < sum(verdicts) < 200
    for padded in (data[:end] + bytes(9) + data[end:], data[:scan] + bytes(3) + data[scan:]):
        assert inspect_image(padded) == ("jpg", 203, 151)
        assert worst(load_pixels(padded, SIZE), load_pixels(data, SIZE)) <= 1


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="mode: seen 'crop', expected 'stretch' or 'pad'"):
        load_pixels(encode(photo()), SIZE, mode="crop")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16", "1"])
def test_strips_give_the_pixels_of_the_whole_picture(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    whole = np.asarray(pixels._flat(image, (1, 2, 3)))
    monkeypatch.setattr(pixels, "_STRIP", 7 * 40)  # 7 rows: the last strip is a shorter one
    assert np.array_equal(pixels._rgb(image, (1, 2, 3)), whole)


def test_a_refusal_holds_no_address() -> None:
    with pytest.raises(ValueError, match="seen 5 bytes \\(not recognised\\)"):
        load_pixels(b"GIF89", 8)


def test_recent_pixels_are_kept_without_the_file() -> None:
    """A server would keep the last eight pictures of its visitors, 20 MB each."""
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    tracemalloc.start()
    kept = recent_pixels(buffer.getvalue() + bytes(20 * 2**20), SIZE)
    assert tracemalloc.get_traced_memory()[0] < 2 * 2**20
    tracemalloc.stop()
    assert recent_pixels(buffer.getvalue() + bytes(20 * 2**20), SIZE) is kept
    assert recent_pixels(buffer.getvalue(), SIZE) is not kept
    assert torch.equal(recent_pixels(buffer.getvalue(), SIZE), kept)
