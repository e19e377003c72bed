"""A folder's own processor, put together without what videos need, and the encoder that uses it.

Legend: T tokens, A axes of positions.
"""

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PROCESSOR_MAPPING, AutoImageProcessor

from ts_lightning.grounding.coordinates import Size
from ts_lightning.grounding.resizing import smart_size
from ts_lightning.models.backbones.hf_substitutes import KimiPixels, PixtralText, molmo2_pixels
from ts_lightning.models.encode import Encoder
from ts_lightning.models.pixels import CLIP_MEAN, open_picture

# Families whose own needs torchvision.
PROCESSORS: dict[str, Any] = {"mistral3": PixtralText}
PIXELS: dict[str, Any] = {"kimi_k25": KimiPixels, "molmo2": molmo2_pixels}


def load_processor(folder: Path, config: Any, tokenizer: Any) -> Any:
    """The family's processor with the folder's image processor (its PIL form) and `tokenizer`, without videos.

    ValueError in one line for a family that has none, or none that runs without torchvision.
    """
    kind = config.model_type
    logging.getLogger("transformers.utils.import_utils").addFilter(_tells)
    try:
        if type(config) not in PROCESSOR_MAPPING and config.model_type not in PROCESSORS:
            raise ValueError("no processor of its own")
        family: Any = PROCESSORS.get(config.model_type) or PROCESSOR_MAPPING[type(config)]
        if config.model_type in PIXELS:
            image_processor: Any = PIXELS[config.model_type](_read_json(folder / "preprocessor_config.json"))
        else:
            image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        stored = _read_json(folder / "processor_config.json")
        parts = family.get_attributes()
        own = {name: value for name, value in stored.items() if name in _arguments(family) and name not in parts}
        given = {**dict.fromkeys(parts), "image_processor": image_processor, "tokenizer": tokenizer}
        still = type(family.__name__, (family,), {"check_argument_for_proper_class": _any_class})
        try:
            return still(**given, **own)
        except AttributeError:  # some read their part for videos at once
            absent = {name: Absent() for name, part in given.items() if part is None}
            return still(**{**given, **absent}, **own)
    except Exception as error:  # classes of a hundred families: what they raise has nothing in common
        reason = " ".join((str(error) or type(error).__name__).split())
        if "torchvision" in reason.lower():
            reason = "it needs torchvision, which this project does without"
        raise ValueError(f"pretrained: {folder}: the processor of {kind!r} can't be made: {reason[:200]}") from None


def stored_template(folder: Path) -> Any:
    """A chat template that stands in a file of its own, as older folders have it."""
    return _read_json(folder / "chat_template.json").get("chat_template") or _read_json(
        folder / "processor_config.json"
    ).get("chat_template")


def _tells(record: logging.LogRecord) -> bool:
    """Nobody need hear that the PIL form is taken: it is the one that is meant."""
    return "falling back to" not in record.getMessage() or "Pil" not in record.getMessage()


class Absent:
    """In the place of a part that is not there: whatever it is asked for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _any_class(self: Any, name: str, argument: Any) -> None:
    """In place of the check that refuses a processor without its part for videos."""


def _arguments(family: Any) -> set[str]:
    code = family.__init__.__code__
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = json.loads(path.read_text())
    return values if isinstance(values, dict) else {}


@dataclass
class RopePositions:
    """Positions of several axes as the model's own `get_rope_index` counts them; `kind` is the class that has it."""

    kind: type
    config: Any

    def __call__(self, ids_T: Tensor, types_T: Tensor, pictures: dict[str, Tensor]) -> Tensor:
        """[A, T] of one row whose picture tokens are 1 in `types_T`."""
        model: Any = object.__new__(self.kind)  # the rule reads the config alone: no weights are made
        vars(model)["config"] = self.config
        grid = pictures.get("image_grid_thw")
        positions, _ = model.get_rope_index(
            ids_T[None],
            mm_token_type_ids=types_T[None],
            image_grid_thw=grid,
            attention_mask=torch.ones_like(ids_T)[None],
        )
        return positions[:, 0]


@dataclass
class HFEncoder(Encoder):
    """`Encoder` with a family's own processor; rows hold `pictures`: what the model's forward takes of them.

    `mark` is what the chat template writes for a picture, with the image token once; `behind_pictures` stands behind
    the last one, `accepted` names the tensors. Where `pixel_mode` is "pad" the processor is given squares. `recent` is
    what it made last, shared by the encoders of all tasks.
    """

    processor: Any = None
    mark: str = ""
    accepted: tuple[str, ...] = ()
    positions: RopePositions | None = None
    first_position: int = 0
    behind_pictures: str = ""
    nested: bool = True
    resized_size: Callable[[Size], Size] | None = None
    recent: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_of_tasks"} | {"recent": {}}

    def processed(self, sample: Any) -> tuple[list[str], dict[str, Tensor]]:
        """What stands for each picture in the text, and the tensors of all, by the family's processor.

        The last sample's are kept: its text and its tensors are asked for one after the other, and so are those of
        other questions about the same pictures.
        """
        images, made = self.recent.get("last", (None, None))
        same = images is not None and len(images) == len(sample.image_bytes)
        if not (same and all(a is b for a, b in zip(images, sample.image_bytes, strict=True))):
            try:
                pictures = [self.opened(data) for data in sample.image_bytes]
            except ValueError as error:
                raise ValueError(f"{sample.key}: {error}") from None
            made = self.of_pictures(pictures, sample.key)
            self.recent["last"] = (sample.image_bytes, made)
        return made

    def opened(self, data: bytes) -> Image.Image:
        """The picture that the processor is given: all of it."""
        picture = open_picture(data)
        return on_square(picture) if self.pixel_mode == "pad" else picture

    def of_pictures(self, pictures: list[Image.Image], key: str = "image") -> tuple[list[str], dict[str, Tensor]]:
        """As `processed`, of pictures."""
        if not pictures:
            return [], {}
        token = self.processor.image_token
        images: Any = [pictures] if len(pictures) > 1 and self.nested else pictures  # one conversation's
        try:
            made = self.processor(
                images=images, text=[token * len(pictures)], return_tensors="pt", return_text_replacement_offsets=True
            )
        except Exception as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            raise ValueError(f"{key}: the processor of the model refused its pictures: {reason}") from None
        if "text_replacement_offsets" not in made:
            raise ValueError(f"{key}: the processor of the model does not say what stands for a picture")
        texts = [piece["replacement"] for piece in made["text_replacement_offsets"][0]]
        tensors = {name: value for name, value in made.items() if name in self.accepted and torch.is_tensor(value)}
        return texts, tensors

    def picture_text(self, index: int, sample: Any) -> str:
        text = self.mark_of(index, sample)
        return text + self.behind_pictures if index + 1 == len(sample.image_bytes) else text

    def mark_of(self, index: int, sample: Any) -> str:
        """What stands for a picture, its own tokens in it."""
        return self.mark.replace(self.processor.image_token, self.processed(sample)[0][index])

    def picture_tensors(self, sample: Any, ids_T: Tensor) -> dict[str, Any]:
        pictures = self.processed(sample)[1]
        row: dict[str, Any] = {"pictures": pictures}
        if self.positions is not None:
            image_id: Any = self.tokenizer.convert_tokens_to_ids(self.image_token)
            row["position_ids"] = self.positions(ids_T, (ids_T == image_id).long(), pictures)
        elif self.first_position:
            row["position_ids"] = torch.arange(self.first_position, self.first_position + len(ids_T))
        return row

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.image_size:
            return super().resized(size)
        return self.resized_size(size) if self.resized_size else size

    def seen_picture(self, data: bytes) -> Image.Image:
        picture = self.opened(data)
        return picture.resize(self.resized(picture.size))


def on_square(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a square, as `load_pixels` with "pad" has it."""
    width, height = picture.size
    side = max(picture.size)
    square = Image.new("RGB", (side, side), CLIP_MEAN)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def without_crop(image_processor: Any) -> int | None:
    """Make an image processor that cuts the middle out of pictures, or pads them itself, resize squares; their side.

    None for another; ValueError for one that cuts tiles smaller than they were made.
    """
    cuts = getattr(image_processor, "do_center_crop", None)
    pads = type(image_processor).__name__.startswith("LlavaImageProcessor") and image_processor.do_pad
    if not (cuts or pads):
        return None
    size = image_processor.size
    made = image_processor.crop_size if cuts else size
    height, width = (_get(made, name) or _get(made, "shortest_edge") for name in ("height", "width"))
    if getattr(image_processor, "image_grid_pinpoints", None):  # tiles cover the picture
        whole = _get(size, "shortest_edge") or _get(size, "height")
        if {height, width} != {whole}:
            raise ValueError(
                f"preprocessor_config.json: seen crop_size {width} x {height} of tiles of {whole}, expected {whole}: "
                "boxes need whole pictures"
            )
        return None
    if height != width:
        raise ValueError(f"preprocessor_config.json: seen pictures of {width} x {height}, expected a square")
    square = type(size)(height=height, width=width)
    vars(image_processor).update(do_center_crop=False, do_pad=False, do_resize=True, size=square)
    return height


def tiled_size(pinpoints: Any, side: int) -> Size:
    """(width, height) that a square picture of `side` pixels is cut into tiles at, out of a family's (height, width).

    The smallest of those that keep most of its pixels.
    """
    height, width = max(pinpoints, key=lambda place: (min(*place, side), -place[0] * place[1]))
    return width, height


def resizing_of(image_processor: Any, max_pixels: int | None, max_tokens: int) -> Callable[[Size], Size] | None:
    """The rule of an image processor that keeps the shape of pictures in whole patches; None for another.

    Its bound becomes `max_pixels` (None: no more than `max_tokens` tokens). ValueError for `max_pixels` without a rule.
    """
    patch: Any
    merge: Any
    patch, merge = (getattr(image_processor, name, None) for name in ("patch_size", "merge_size"))
    size: Any = getattr(image_processor, "size", None)
    least, most = (_get(size, f"{name}_edge") for name in ("shortest", "longest"))
    if not (isinstance(patch, int) and isinstance(merge, int) and isinstance(least, int) and isinstance(most, int)):
        if max_pixels is not None:
            raise ValueError(f"max_pixels: seen {max_pixels}, expected null: the processor fixes the sizes of pictures")
        return None
    # GLM counts the pixels of all frames that a still picture is made into
    all_frames = "temporal_factor" in inspect.signature(image_processor.resize).parameters
    frames = image_processor.temporal_patch_size if all_frames else 1
    factor = patch * merge
    bound = min(most // frames, max_tokens * factor**2) if max_pixels is None else max_pixels
    if bound < max(factor**2, least // frames):
        raise ValueError(f"max_pixels: seen {bound}, expected at least {max(factor**2, least // frames)}")
    image_processor.size = type(size)(shortest_edge=least, longest_edge=bound * frames)
    return partial(smart_size, factor=factor, min_pixels=least // frames, max_pixels=bound)


def bounds_of(image_processor: Any) -> dict[str, int]:
    """`size` of one that `resizing_of` has a rule of, as its config file has it."""
    return {name: _get(image_processor.size, name) for name in ("shortest_edge", "longest_edge")}


def _get(size: Any, name: str) -> Any:
    return size.get(name) if hasattr(size, "get") else getattr(size, name, None)


__all__ = [
    "HFEncoder",
    "RopePositions",
    "bounds_of",
    "load_processor",
    "resizing_of",
    "stored_template",
    "tiled_size",
    "without_crop",
]
