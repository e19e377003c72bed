"""The limits of pictures: by the header alone as by the decoder."""

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from ts_lightning.grounding.still_pictures import header_fault, open_still


def encoded(kind: str, size: tuple[int, int] = (40, 30), frames: int = 1, mode: str = "RGB", **options: Any) -> bytes:
    images = [Image.new(mode, size, tuple([100 * i] * 3) if mode == "RGB" else i % 2) for i in range(frames)]
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    stream = BytesIO()
    images[0].save(stream, kind, **more, **options)
    return stream.getvalue()


PICTURES = {
    "jpeg": encoded("JPEG"),
    "progressive jpeg with a comment": encoded("JPEG", progressive=True, comment="x" * 300),
    "long jpeg": encoded("JPEG", (5000, 4)),
    "mpo": encoded("MPO", frames=2),
    "png": encoded("PNG"),
    "long png": encoded("PNG", (3, 5000)),
    "huge png": encoded("PNG", (9000, 8000), mode="1"),
    "moving png": encoded("PNG", frames=3),
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "webp with exif": encoded("WEBP", exif=Image.Exif().tobytes() or b"Exif\0\0"),
    "long webp": encoded("WEBP", (5000, 4)),
    "long lossless webp": encoded("WEBP", (4, 5000), lossless=True),
    "moving webp": encoded("WEBP", frames=2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_header_says_what_the_decoder_says(name: str) -> None:
    try:
        open_still(PICTURES[name])
        why = None
    except ValueError as error:
        why = str(error)
    assert header_fault(PICTURES[name]) == why
    assert (why is None) == (name.split()[0] not in ("long", "huge", "moving"))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0" * 9, b"RIFF1234WEBPVP8X", b"no picture"])
def test_what_is_no_picture_is_left_to_the_decoder(data: bytes) -> None:
    assert header_fault(data) is None
