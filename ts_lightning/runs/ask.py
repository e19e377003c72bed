"""One question about pictures, or many: `ask(vlm, "kitchen.jpg", "Where is the mug?")`.

import ts_lightning

model = ts_lightning.load("outputs/coco")  # a run, a checkpoint, a package, an adapter, a folder of weights
reply = model.ask("kitchen.jpg", "Where is the mug? Answer with a box.")
print(reply.text, reply.boxes, reply.pixels)
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from ts_lightning.data.sample import IMAGE_MARK, Sample, SampleImage, Turn, hidden
from ts_lightning.data.tar import MAX_MEMBER, open_regular
from ts_lightning.grounding.answer import read_answer
from ts_lightning.grounding.boxes import Box
from ts_lightning.models.pixels import image_size, load_pixels
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.batch import batch_for

BATCH = 8


@dataclass(frozen=True)
class Reply:
    """An answer and what was read from it.

    task: the path that answered. boxes: (x1, y1, x2, y2) in [0, 1] of the displayed picture, `pixels` the same in its
    pixels; `pictures` says which picture each box lies in (from 0), `phrases` what it is called ("" for nothing). The
    first box counts where one is asked. steps: the texts of the steps. sizes: (width, height) of the pictures.
    """

    text: str
    task: str
    boxes: tuple[Box, ...]
    phrases: tuple[str, ...]
    pictures: tuple[int, ...]
    steps: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def pixels(self) -> tuple[Box, ...]:
        """The boxes in pixels of their pictures."""
        scaled = []
        for (x1, y1, x2, y2), picture in zip(self.boxes, self.pictures, strict=True):
            width, height = self.sizes[picture]
            scaled.append((x1 * width, y1 * height, x2 * width, y2 * height))
        return tuple(scaled)


@overload
def ask(vlm: VLM, images: Any, question: str, task: str = ..., max_new_tokens: int = ...) -> Reply: ...


@overload
def ask(vlm: VLM, images: Any, question: Sequence[str], task: str = ..., max_new_tokens: int = ...) -> list[Reply]: ...


def ask(
    vlm: VLM, images: Any, question: str | Sequence[str], task: str = "auto", max_new_tokens: int = 256
) -> Reply | list[Reply]:
    """The greedy answer to a question about a picture or several; a list of questions has a list of such, as long.

    A picture is a path, a PIL image, an array [H, W, 3] of bytes, or encoded bytes. `task` is "auto" (the task router
    decides), "understanding" or a skill. ValueError in one line for what is no picture, question or task.
    """
    if isinstance(question, str):
        return ask(vlm, [images], [question], task, max_new_tokens)[0]
    if len(images) != len(question):
        raise ValueError(f"ask: seen {len(images)} pictures for {len(question)} questions, expected as many")
    asked = zip(images, question, strict=True)
    samples = [sample_of(pictures, text, vlm.chosen_task(text, task)) for pictures, text in asked]
    replies = []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        batch = batch_for(vlm, [vlm.encode(sample, True, sample.task) for sample in part])
        texts = vlm.generate(batch, max_new_tokens)
        replies += [reply_of(vlm, sample, text) for sample, text in zip(part, texts, strict=True)]
    return replies


def sample_of(pictures: Any, question: str, task: str) -> Sample:
    """A record whose answer is open."""
    if not question.strip():
        raise ValueError("question: seen nothing, expected a question")
    listed = pictures if isinstance(pictures, list | tuple) else [pictures]
    data = [encoded(picture) for picture in listed]
    images = [SampleImage(f"image {i + 1}", *image_size(one)) for i, one in enumerate(data)]
    turns = [Turn("user", f"{IMAGE_MARK}\n" * len(data) + hidden(question)), Turn("assistant", "")]
    sample = Sample("asked", task=task, images=images, turns=turns, regions=[], key="question")
    sample.image_bytes = data
    return sample


def encoded(picture: Any) -> bytes:
    """The bytes of a picture that is a path, a PIL image, an array or bytes; ValueError for anything else.

    A file is decoded once: who decodes its bytes later doesn't know its name.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        try:
            with open_regular(picture, MAX_MEMBER) as file:
                data = file.read()
        except OSError as error:
            raise ValueError(f"image: {picture}: {error.strerror}, expected a file of a picture") from None
        try:
            load_pixels(data, 1)
        except ValueError as error:
            raise ValueError(f"image: {picture}: {str(error).removeprefix('image: ')}") from None
        return data
    if torch.is_tensor(picture):
        picture = picture.cpu().numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            seen = f"an array {picture.dtype} {list(picture.shape)}"
            raise ValueError(f"image: seen {seen}, expected bytes [height, width, 3]")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"image: seen a {type(picture).__name__}, expected a path, a PIL image, an array or bytes")
    stream = io.BytesIO()
    (picture if picture.mode in ("RGB", "L", "RGBA") else picture.convert("RGB")).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def reply_of(vlm: VLM, sample: Sample, text: str) -> Reply:
    """What an answer says."""
    sizes = tuple((image.width, image.height) for image in sample.images)
    read = read_answer(text, vlm.codec, sizes)
    found = [thing for thing in read.objects if thing.is_box and sizes]
    return Reply(
        text=text,
        task=sample.task,
        boxes=tuple(thing.box for thing in found),
        phrases=tuple(thing.phrase or "" for thing in found),
        pictures=tuple(thing.image or 0 for thing in found),
        steps=tuple(text[start:end] for start, end in read.steps),
        sizes=sizes,
    )
