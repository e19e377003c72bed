"""Faults of a server's preprocessing, planted on the way to it."""

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from ts_lightning.rl.vllm_server import data_url

Change = Callable[[Image.Image], Image.Image]


def bgr(picture: Image.Image) -> Image.Image:
    """Channels in the other order."""
    return Image.merge("RGB", picture.split()[::-1])


def nearest(resized: Callable[[tuple[int, int]], tuple[int, int]]) -> Change:
    """The model's size, by another filter; pictures that have it stay as they are."""
    return lambda picture: picture.resize(resized(picture.size), Image.Resampling.NEAREST)


def halved(picture: Image.Image) -> Image.Image:
    """Another size."""
    return picture.resize((picture.width // 2, picture.height // 2))


def changed(body: dict[str, Any], change: Change) -> dict[str, Any]:
    """A chat request with other pictures."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        if given["type"] != "image_url":
            return given
        data = base64.b64decode(given["image_url"]["url"].split(",", 1)[1])
        stream = io.BytesIO()
        change(Image.open(io.BytesIO(data)).convert("RGB")).save(stream, "PNG")
        return {"type": "image_url", "image_url": {"url": data_url(stream.getvalue())}}

    def message(given: dict[str, Any]) -> dict[str, Any]:
        content = given["content"]
        return given if isinstance(content, str) else {**given, "content": list(map(part, content))}

    return {**body, "messages": list(map(message, body["messages"]))}
