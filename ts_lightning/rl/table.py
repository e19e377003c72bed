"""Prompts with their pictures and completions, for people: files in the run's folder, and the logger's own tables."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ts_lightning.data.reader import with_bytes
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_pictures import log_pictures

if TYPE_CHECKING:
    from ts_lightning.rl.rollout import Rollout

COLORS = ("red", "blue", "orange", "purple", "cyan", "magenta", "yellow", "white")
TRUE = "lime"


def write_table(
    trainer: Any,
    vlm: VLM,
    micro_batches: Sequence[Mapping[str, Any]],
    rollouts: Sequence["Rollout"],
    step: int,
    prompts: int,
) -> list[Path]:
    """`rollouts/step-000010-0.png` and `.json` for the first prompts of micro-batches, and in loggers that take them.

    A picture shows the sample's pictures side by side as the model sees them, the true box in lime, and the boxes of
    the completions in their colours, each on the picture it names.
    """
    folder = Path(trainer.default_root_dir) / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    pairs = zip(micro_batches, rollouts, strict=True)
    places = ((micro, rollout, b) for micro, rollout in pairs for b in range(len(rollout.completions)))
    for number, (micro, rollout, b) in enumerate(islice(places, prompts)):
        sample, group = micro["samples"][b], rollout.completions[b]
        pictures, size = seen_pictures(vlm, micro, b), len(group)
        path = folder / f"step-{step:06d}-{number}.png"
        draw_group(pictures, sample, group, vlm.encoder.pixel_mode == "pad").save(path)
        listed = [
            {
                "text": completion.text,
                "advantage": round(rollout.advantages[b * size + g].item(), 4),
                **{name: round(values[b * size + g].item(), 4) for name, values in rollout.rewards.items()},
            }
            for g, completion in enumerate(group)
        ]
        record = {"step": step, "id": sample.id, "subtask": sample.subtask}
        record |= {"prompt": sample.question, "completions": listed}
        path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        rows += [[sample.id, sample.question, *one.values()] for one in listed]
        paths.append(path)
    for logger in trainer.loggers:
        if hasattr(logger, "log_table") and rows:
            columns = ["id", "prompt", "text", "advantage", *rollouts[0].rewards]
            logger.log_table("rollouts", columns=columns, data=rows, step=step)
    log_pictures(trainer.loggers, "rollout_pictures", paths, step)
    return paths


def draw_group(pictures: list[Image.Image], sample: Sample, group: list[Any], padded: bool = False) -> Image.Image:
    """The pictures side by side with the true boxes and those of each completion.

    `padded`: the pictures are centred on a square, and boxes are not.
    """
    space = CoordinateSpace("decimals:6", "padded_square" if padded else "original")
    width, height = sum(p.width + 4 for p in pictures) or 4, max((p.height for p in pictures), default=4)
    sheet, left = Image.new("RGB", (width, height), "black"), 0
    for number, picture in enumerate(pictures):
        draw = ImageDraw.Draw(picture)
        size = (sample.images[number].width, sample.images[number].height)
        regions = [sample.regions[i] for i in _targets(sample) if sample.regions[i].image == number]
        true = [box for region in regions for box in ([region.box] if region.box else region.boxes or [])]
        said = [(COLORS[g % len(COLORS)], o.box) for g, c in enumerate(group) for o in c.objects if o.image == number]
        for color, box in [*((TRUE, box) for box in true), *said]:
            framed = space.encode([box[:2], box[2:]], size)
            corners = [v * side for v, side in zip(framed, (*picture.size, *picture.size), strict=True)]
            draw.rectangle(corners, outline=color)
        sheet.paste(picture, (left, 0))
        left += picture.width + 4
    return sheet


def seen_pictures(vlm: VLM, batch: Mapping[str, Any], row: int) -> list[Image.Image]:
    """The pictures of one row as the model sees them, from the batch's pixels or patches.

    From the shard's, where a family's own processor makes tensors of them that nobody else reads.
    """
    if "images_per_row" not in batch or "pixel_values" not in batch:
        return [vlm.encoder.seen_picture(data) for data in with_bytes(batch["samples"][row]).image_bytes]
    counts = batch["images_per_row"].tolist()
    first, last = sum(counts[:row]), sum(counts[: row + 1])
    if "image_grid" not in batch:
        return [_image(pixels_3HW) for pixels_3HW in batch["pixel_values"][first:last]]
    encoder: Any = vlm.encoder
    sizes = batch["image_grid"].prod(1).tolist()
    pictures = []
    for number in range(first, last):
        patches = batch["pixel_values"][sum(sizes[:number]) : sum(sizes[: number + 1])]
        _, rows, columns = batch["image_grid"][number].tolist()
        merge, side = encoder.merge, encoder.patch
        grid = patches.view(rows // merge, columns // merge, merge, merge, 3, encoder.temporal, side, side)[
            ..., 0, :, :
        ]
        pixels = grid.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)
        pictures.append(_image(pixels))
    return pictures


def _image(pixels_3HW: Tensor) -> Image.Image:
    return Image.fromarray(pixels_3HW.permute(1, 2, 0).to("cpu", torch.uint8).contiguous().numpy())


def _targets(sample: Sample) -> list[int]:
    return sample.answer.regions if sample.answer else []
