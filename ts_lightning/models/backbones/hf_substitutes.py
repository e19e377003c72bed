"""Processors of families whose own needs torchvision, by the same rules on PIL and torch; made here, loaded by name.

`torchvision`'s bilinear without antialiasing is torch's; its antialiased bicubic of bytes is PIL's within a level.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

HALF = (0.5, 0.5, 0.5)


class PixtralText(ProcessorMixin):
    """Rows of picture tokens with a break behind each (Pixtral, Mistral 3)."""

    text_kwargs = {"return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **kwargs: Any,
    ) -> None:
        image_processor.patch_size = {
            "height": patch_size * spatial_merge_size,
            "width": patch_size * spatial_merge_size,
        }
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.side = patch_size * spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        height, width = (int(pixels) // self.side for pixels in image_inputs["image_sizes"][image_idx])
        line = self.image_token * width
        return self.image_break_token.join([line] * height) + self.image_end_token


class OnTorch:
    """Mixin before an image processor of transformers that resizes and normalizes by torchvision: by torch alone.

    For bilinear resizing to given sides torchvision's functions are these.
    """

    def resize(self, image: Tensor, size: Any, resample: Any = None, antialias: bool = True, **kwargs: Any) -> Tensor:
        sides = (size.height, size.width)
        return torch.nn.functional.interpolate(image, sides, mode="bilinear", align_corners=False, antialias=antialias)

    def normalize(self, image: Tensor, mean: Any, std: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
        mean, std = (torch.as_tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (mean, std))
        return (image - mean) / std


def molmo2_pixels(values: dict[str, Any]) -> Any:
    """Molmo 2's image processor, without torchvision."""
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

    kept = {name: value for name, value in values.items() if not name.endswith("_type")}
    return type("Molmo2ImageProcessor", (OnTorch, Molmo2ImageProcessor), {})(**kept)


class KimiPixels:
    """Kimi-VL's rule: never enlarged, at most `max_patches` patches and `size` patches a side, padded on the right."""

    model_input_names = ("pixel_values", "image_grid_thw")

    def __init__(self, values: dict[str, Any]) -> None:
        self.patch_size, self.merge_size = values.get("patch_size", 14), values.get("merge_size", 2)
        self.max_patches = values.get("max_patches", 16384)
        self.most = values.get("size", {}).get("max_height", 512)
        self.mean, self.std = values.get("image_mean", HALF), values.get("image_std", HALF)

    def fetch_images(self, images: Any) -> Any:
        return images

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        pictures = flat(images)
        made = [self.patches(picture) for picture in pictures]
        data = {"pixel_values": torch.cat([p for p, _ in made]), "image_grid_thw": torch.tensor([g for _, g in made])}
        return BatchFeature(data=data)

    def patches(self, picture: Image.Image) -> tuple[Tensor, list[int]]:
        """[P, 3, patch, patch] and the grid (1, rows, columns)."""
        patch, (width, height) = self.patch_size, picture.size
        count = max(1.0, height // patch) * max(1.0, width // patch)
        most = self.most * patch
        scale = min(1.0, math.sqrt(self.max_patches / count), most / height, most / width)
        high, wide = (min(max(1, int(side * scale)), most) for side in (height, width))
        resized = picture.resize((wide, high), Image.Resampling.BICUBIC) if (wide, high) != picture.size else picture
        factor = patch * self.merge_size
        pixels_3HW = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
        pixels_3HW = torch.nn.functional.pad(pixels_3HW, (0, -wide % factor, 0, -high % factor)) / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        normal = (pixels_3HW - mean) / std
        rows, columns = normal.shape[1] // patch, normal.shape[2] // patch
        split = normal.reshape(3, rows, patch, columns, patch).permute(1, 3, 0, 2, 4)
        return split.reshape(rows * columns, 3, patch, patch), [1, rows, columns]


def flat(images: Any) -> list[Image.Image]:
    """The pictures of a list, or of lists in a list."""
    if isinstance(images, Image.Image):
        return [images]
    return [picture for one in images for picture in flat(one)] if isinstance(images, Sequence) else []
