"""Pictures to pixels in one worker: ours against PIL's bicubic with float normalisation, as image processors do it.

The check before the timing: every value within two levels of PIL, and at most one in a million beyond one level.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tools.bench.harness import interleave, ratio, report, spread
from ts_lightning.models.pixels import load_pixels

SIZE, COUNT, BATCH = 336, 192, 16
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def make_pictures(count: int) -> list[bytes]:
    """Render 640x480 JPEGs of about 100 KB: smooth ground, sensor noise, rectangles."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        ground = Image.fromarray(rng.normal(128, 40, (48, 64, 3)).clip(0, 255).astype(np.uint8))
        noise = rng.normal(0, 8, (480, 640, 3))
        pixels = np.asarray(ground.resize((640, 480), Image.Resampling.BICUBIC)) + noise
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, w, h = rng.integers((0, 0, 20, 20), (560, 400, 80, 80)).tolist()
            draw.rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    return pictures


def pil_levels(data: bytes) -> np.ndarray:
    """Return uint8 [S, S, 3] by PIL."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def peer(data: bytes) -> Tensor:
    """Return normalised floats [3, S, S] by PIL and numpy."""
    normalised = (pil_levels(data).astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def ours(data: bytes) -> Tensor:
    """Return uint8 [3, S, S]; the model normalises on its device."""
    return load_pixels(data, SIZE)


class _Pixels(IterableDataset):
    """The pictures of one tar through one function."""

    def __init__(self, tar: Path, decode: Callable[[bytes], Tensor]) -> None:
        self.tar, self.decode = tar, decode

    def __iter__(self) -> Iterator[Tensor]:
        records = wds.WebDataset(str(self.tar), shardshuffle=False, empty_check=False)
        return (self.decode(record["jpg"]) for record in records)


def _decode_all(decode: Callable[[bytes], object], pictures: list[bytes]) -> None:
    for picture in pictures:
        decode(picture)


def _drain(loader: DataLoader) -> None:
    for _ in loader:
        pass


def main(rounds: int = 5) -> int:
    """Check levels, then time the bare functions and a DataLoader with one worker."""
    pictures = make_pictures(COUNT)
    difference = torch.stack(
        [(ours(p).permute(1, 2, 0).int() - torch.tensor(pil_levels(p)).int()).abs() for p in pictures]
    )
    levels = {
        "max_level_difference": int(difference.max()),
        "share_above_one_level": (difference > 1).double().mean().item(),
    }
    if levels["max_level_difference"] > 2 or levels["share_above_one_level"] > 1e-6:
        return report("loader", False, ratios={}, floor_ratio=None, **levels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has
    functions = {"decode_only": simplejpeg.decode_jpeg, "pil_bicubic_normalise": peer, "ours": ours}
    seconds = interleave({name: partial(_decode_all, f, pictures[:64]) for name, f in functions.items()}, rounds)
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "pictures.tar"
        with wds.TarWriter(str(tar)) as writer:
            for number, picture in enumerate(pictures):
                writer.write({"__key__": f"{number:06d}", "jpg": picture})
        sets = {name: _Pixels(tar, function) for name, function in (("peer", peer), ("ours", ours))}
        worker = interleave(
            {name: partial(_drain, DataLoader(pixels, BATCH, num_workers=1)) for name, pixels in sets.items()}, rounds
        )
    torch.set_num_threads(threads)
    return report(
        "loader",
        True,
        ratios={
            "pil_bicubic_normalise": ratio(seconds, "ours", "pil_bicubic_normalise"),
            "pil_in_one_worker": ratio(worker, "ours", "peer"),
        },
        spread={
            "pil_bicubic_normalise": spread(seconds, "ours", "pil_bicubic_normalise"),
            "pil_in_one_worker": spread(worker, "ours", "peer"),
        },
        floor_ratio=ratio(seconds, "ours", "decode_only"),
        times_faster=ratio(seconds, "pil_bicubic_normalise", "ours"),
        times_faster_in_one_worker=ratio(worker, "peer", "ours"),
        **levels,
        pictures_per_second=round(64 / min(seconds["ours"]), 1),
    )
