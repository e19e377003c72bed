"""Pictures to pixels: ours against PIL's bicubic with float normalisation, and against transformers' own processors.

CLIP's squares and Qwen2-VL's patches; in one worker, too. The check before the timing: every value within two levels of
PIL and of the processors on it, and at most one in a million beyond one level; of those on torchvision, whose kernel is
not PIL's where it enlarges (ours is PIL there), at most one in ten thousand.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available

from tools.bench.harness import interleave, ratio, report, spread
from ts_lightning.models.backbones.qwen_vl import PatchEncoder
from ts_lightning.models.pixels import image_size, load_pixels

SIZE, COUNT, BATCH = 336, 192, 16
CHECKED, TIMED = 16, 64  # pictures: against transformers, and in a round
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


PATCHES = PatchEncoder(None, "", 0, 0, max_length=0)  # type: ignore[arg-type]  # text is not its part here


def our_patches(data: bytes) -> Tensor:
    """Return uint8 patches [P, X] as Qwen2-VL takes them; the model normalises on its device."""
    width, height = PATCHES.resized(image_size(data))
    return PATCHES.patches(load_pixels(data, (height, width)))


def processor(kind: type, **options: Any) -> Callable[[bytes], Tensor]:
    """Return normalised pixels, or patches, as an image processor of transformers makes them of bytes."""
    made = kind(**options)
    return lambda data: made(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"].squeeze(0)


def processors() -> dict[str, Callable[[bytes], Tensor]]:
    """The processors of transformers on PIL; those on torchvision beside them where it is installed."""
    square = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False}
    limits = {"min_pixels": PATCHES.min_pixels, "max_pixels": PATCHES.max_pixels}
    found = {
        "transformers_pil": processor(CLIPImageProcessorPil, **square),
        "patches/transformers_pil": processor(Qwen2VLImageProcessorPil, **limits),
    }
    if is_torchvision_available():
        from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

        found["transformers_torchvision"] = processor(CLIPImageProcessor, **square)
        found["patches/transformers_torchvision"] = processor(Qwen2VLImageProcessor, **limits)
    return found


def levels_of(normalised: Tensor) -> Tensor:
    """0 to 255 of normalised pixels [3, S, S] or patches [P, 3 * X]."""
    channels = normalised.reshape(*((3, -1) if normalised.ndim == 3 else (len(normalised), 3, -1)))
    return ((channels * torch.tensor(STD)[:, None] + torch.tensor(MEAN)[:, None]) * 255).reshape(normalised.shape)


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
    pictures, peers = make_pictures(COUNT), processors()
    differences = {
        "pil": [(ours(p).permute(1, 2, 0).int() - torch.tensor(pil_levels(p)).int()).abs() for p in pictures]
    }
    for name, make in peers.items():
        mine = our_patches if name.startswith("patches") else ours
        differences[name] = [(mine(p) - levels_of(make(p)).round()).abs() for p in pictures[:CHECKED]]
    found = {name: torch.cat([part.flatten() for part in parts]) for name, parts in differences.items()}
    levels = {
        "max_level_difference": {name: int(difference.max()) for name, difference in found.items()},
        "share_above_one_level": {name: (difference > 1).double().mean().item() for name, difference in found.items()},
    }
    allowed = {name: 1e-4 if name.endswith("torchvision") else 1e-6 for name in found}
    above = any(share > allowed[name] for name, share in levels["share_above_one_level"].items())
    far = any(most > 2 for name, most in levels["max_level_difference"].items() if not name.endswith("torchvision"))
    if far or above:
        return report("loader", False, ratios={}, floor_ratio=None, **levels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a worker has
    functions = {"decode_only": simplejpeg.decode_jpeg, "pil_bicubic_normalise": peer, "ours": ours}
    functions |= {"our_patches": our_patches, **peers}
    seconds = interleave({name: partial(_decode_all, f, pictures[:TIMED]) for name, f in functions.items()}, rounds)
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
    pairs = {name: ("our_patches" if name.startswith("patches") else "ours", name) for name in peers}
    pairs["pil_bicubic_normalise"] = ("ours", "pil_bicubic_normalise")
    return report(
        "loader",
        True,
        ratios={name: ratio(seconds, *pair) for name, pair in pairs.items()}
        | {"pil_in_one_worker": ratio(worker, "ours", "peer")},
        spread={name: spread(seconds, *pair) for name, pair in pairs.items()}
        | {"pil_in_one_worker": spread(worker, "ours", "peer")},
        floor_ratio=ratio(seconds, "ours", "decode_only"),
        patches_floor_ratio=ratio(seconds, "our_patches", "decode_only"),
        torchvision="measured" if len(peers) > 2 else "not measured: it is not installed",
        **levels,
        pictures_per_second={name: round(TIMED / min(seconds[name]), 1) for name in ("ours", "our_patches")},
    )
