"""Qwen2-VL and Qwen2.5-VL: pictures of any size as patches, positions of three axes (M-RoPE).

Legend: T tokens, P patches of all pictures, N pictures, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ts_lightning.grounding.codecs import backbone_codec
from ts_lightning.grounding.resizing import smart_size
from ts_lightning.models.backbones.hub_layout import HubBackbone, with_pixels
from ts_lightning.models.encode import ChatTemplate, Encoder
from ts_lightning.models.pixels import image_size, load_pixels, recent_pixels

CHATML = ChatTemplate(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>",
    user="\n<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    blank="",
    after_picture="",
)


@dataclass
class PatchEncoder(Encoder):
    """`Encoder` for pictures as patches: rows hold uint8 patches [P, C * temporal * patch * patch] and `image_grid`.

    `merge` x `merge` patches become one token. A still picture is `temporal` equal frames.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        return smart_size(size, self.patch * self.merge, self.min_pixels, self.max_pixels)

    def picture_text(self, index: int, sample: Any) -> str:
        width, height = self.resized(image_size(sample.image_bytes[index]))
        tokens = (width // self.patch // self.merge) * (height // self.patch // self.merge)
        return f"<|vision_start|>{self.image_token * tokens}<|vision_end|>"

    def picture_tensors(self, sample: Any, ids_T: Tensor) -> dict[str, Tensor]:
        patches, grids = [], []
        try:
            for data in sample.image_bytes:
                width, height = self.resized(image_size(data))
                patches.append(self.patches(recent_pixels(data, (height, width))))
                grids.append([1, height // self.patch, width // self.patch])
        except ValueError as error:
            raise ValueError(f"{sample.key}: {error}") from None
        grid_N3 = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
        dim = 3 * self.temporal * self.patch**2
        image_id: Any = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return {
            "pixel_values": torch.cat(patches) if patches else torch.empty(0, dim, dtype=torch.uint8),
            "image_grid": grid_N3,
            "position_ids": rope_positions(ids_T == image_id, grid_N3, self.merge),
        }

    def patches(self, pixels_3HW: Tensor) -> Tensor:
        """[P, C * temporal * patch * patch], the patches of a merged token side by side."""
        rows, columns = (side // self.patch // self.merge for side in pixels_3HW.shape[1:])
        split = pixels_3HW.reshape(3, rows, self.merge, self.patch, columns, self.merge, self.patch)
        grouped = split.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3)  # [P, 3, patch, patch]
        return grouped[:, :, None].expand(-1, -1, self.temporal, -1, -1).reshape(len(grouped), -1)

    def pictures(self, batch: Mapping[str, Any]) -> list[Image.Image]:
        grids = batch["image_grid"].tolist()
        parts = batch["pixel_values"].cpu().split([rows * columns for _, rows, columns in grids])
        return [self.picture(part, rows, columns) for part, (_, rows, columns) in zip(parts, grids, strict=True)]

    def picture(self, patches: Tensor, rows: int, columns: int) -> Image.Image:
        """What `patches` was made of."""
        merge, patch = self.merge, self.patch
        first = patches.reshape(-1, 3, self.temporal, patch, patch)[:, :, 0]
        grouped = first.reshape(rows // merge, columns // merge, merge, merge, 3, patch, patch)
        rgb_HW3 = grouped.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
        return Image.fromarray(rgb_HW3.numpy())

    def tokens_of_pictures(self, batch: Mapping[str, Any]) -> list[int]:
        return (batch["image_grid"].prod(1) // self.merge**2).tolist()

    def seen_picture(self, data: bytes) -> Image.Image:
        width, height = self.resized(image_size(data))
        return Image.fromarray(load_pixels(data, (height, width)).permute(1, 2, 0).numpy())


def rope_positions(image_T: Tensor, grid_N3: Tensor, merge: int) -> Tensor:
    """[3, T] time, row and column of every token: text counts on, a picture's tokens have their place in its grid."""
    parts: list[Tensor] = []
    start, begin = 0, 0  # the next position, the next token
    for _, rows, columns in (grid_N3 // torch.tensor([1, merge, merge])).tolist():
        picture = begin + int(image_T[begin:].int().argmax())
        text = picture - begin
        parts.append(torch.arange(start, start + text).expand(3, -1))
        start += text
        place_2M = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
        parts.append(torch.cat([torch.zeros_like(place_2M[:1]), place_2M]) + start)
        start += max(rows, columns)
        begin = picture + rows * columns
    parts.append(torch.arange(start, start + len(image_T) - begin).expand(3, -1))
    return torch.cat(parts, 1)


class QwenVLBackbone(HubBackbone):
    """Loads a folder that transformers saved; with `config` it has random weights from `seed` and no folder is needed.

    Args:
        pretrained: Folder with config, safetensors and tokenizer.
        config: A Qwen2-VL or Qwen2.5-VL config as a dict, in place of `pretrained`.
        seed: Of the random weights.
        dtype: Of the weights: "float32", "bfloat16", ...
        codec: Notation of regions; None is the model's own (qwen2_vl on 0-1000, qwen2_5_vl in resized pixels).
        codec_grid: Another grid than the notation's own; the frame stays its own.
        max_length: Longest row in tokens.
        min_pixels: Smaller pictures are enlarged to this area.
        max_pixels: Larger ones are reduced to it.
    """

    model_types = ("qwen2_vl", "qwen2_5_vl")
    image_token = "<|image_pad|>"
    template = CHATML
    marks = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")

    def __init__(
        self,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: str = "float32",
        codec: str | None = None,
        codec_grid: str | None = None,
        max_length: int = 8192,
        min_pixels: int = 56 * 56,
        max_pixels: int = 28 * 28 * 1280,
    ) -> None:
        super().__init__()
        settings = self.source(pretrained, config)
        tokenizer = self.load(settings, pretrained, seed, dtype)
        vision: Any = settings.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        self.side_files = with_pixels(self.side_files, {"size": size})
        resized = partial(smart_size, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
        self.native_codec = settings.model_type
        self.encoder = PatchEncoder(
            tokenizer=tokenizer,
            image_token=self.image_token,
            image_tokens=0,
            image_size=0,
            max_length=max_length,
            codec=backbone_codec(codec or self.native_codec, codec_grid, resized),
            template=self.template,
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        patches = batch["pixel_values"]
        pixels_PCX = self.normalise(patches.reshape(len(patches), 3, -1))
        return self.model.model.visual(pixels_PCX.flatten(1), grid_thw=batch["image_grid"]).pooler_output
