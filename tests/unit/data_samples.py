"""Small samples, shards and a fake encoder for the data tests."""

import io
import json
from pathlib import Path

import torch
from PIL import Image

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards


def picture(number: int = 0, size: tuple[int, int] = (8, 6), kind: str = "JPEG", exif: int | None = None) -> bytes:
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 50))
    stream, extra = io.BytesIO(), {}
    if exif is not None:
        tags = Image.Exif()
        tags[0x0112] = exif
        extra["exif"] = tags
    image.save(stream, kind, **extra)
    return stream.getvalue()


def sample(number: int, images: int = 1, kind: str = "JPEG") -> Sample:
    return Sample(
        id=f"test/{number}",
        key=f"k{number:05d}",
        source="test",
        task="grounding",
        subtask="localization",
        tags=["cot"],
        images=[SampleImage(f"{number}-{i}.jpg", 8, 6) for i in range(images)],
        turns=[
            Turn("user", "<image>" * images + "Where?"),
            Turn("assistant", "Step 1: here {region:0}.", steps=[(0, 24)]),
        ],
        regions=[SampleRegion(phrase="it", category="thing", area_px=12.5, box=(0.125, 0.25, 0.5, 1.0))],
        answer=Answer(regions=[0]),
        meta={"number": number},
        image_bytes=[picture(number + i, kind=kind) for i in range(images)],
    )


def shards(folder: Path, sizes: list[int], start: int = 0) -> list[Path]:
    """Shards of given sizes; record number i (from `start`) has id "test/i"."""
    paths, number = [], start
    for s, size in enumerate(sizes):
        paths += write_shards((sample(i) for i in range(number, number + size)), folder, f"s{s}")
        number += size
    return paths


def encode(one: Sample, for_generation: bool = False) -> dict:
    """Row of record n: n % 5 + 2 tokens (n + 1), fewer by one for generation; a 2 x 2 picture filled with n."""
    number = int(one.id.split("/")[1])
    if b"broken" in one.image_bytes[0]:
        raise ValueError(f"{one.key}: image: seen broken bytes, expected a JPEG")
    ids = torch.full((number % 5 + 2 - for_generation,), number + 1)
    steps = torch.zeros_like(ids) if not for_generation else torch.full_like(ids, -1)
    pixels = torch.full((1, 3, 2, 2), number % 256, dtype=torch.uint8)
    return {"input_ids": ids, "step_ids": steps, "pixel_values": pixels, "task": 1, "sample": one.without_bytes()}


def put(path: Path, data: object) -> Path:
    """A file with text, or with anything else as JSON; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def photo(path: Path, size: tuple[int, int] = (100, 50)) -> None:
    """A JPEG file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(1, size))
