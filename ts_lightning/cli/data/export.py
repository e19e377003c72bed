"""`ts-lightning data export`."""

from pathlib import Path
from typing import Literal

from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.codecs import told_codec
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.export import to_coco, to_llava, to_ms_swift


def export(
    format: Literal["coco", "llava", "ms-swift"],
    /,
    *shards: str,
    out: Path,
    codec: str = "scout",
    grid: str | None = None,
    frame: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    split: str = "export",
) -> None:
    """Turn shards into the files of other tools, to train them on the same data.

        ts-lightning data export coco 'DIR/*.tar' --out DIR           # annotations/ and photos
        ts-lightning data export llava 'DIR/*.tar' --out DIR --codec scout
        ts-lightning data export ms-swift 'DIR/*.tar' --out DIR

    Args:
        format: whose files
        shards: tars, or a pattern
        out: folder for the files and the pictures
        codec: llava: the notation of boxes in the texts
        grid: llava: 100, 1000, decimals:3 or pixels, in place of the notation's own
        frame: llava: original or padded_square, in place of the notation's own
        min_pixels: llava: least area of the resized picture that boxes of qwen2_5_vl are pixels of
        max_pixels: llava: largest area of that; without both they are pixels of the picture as it is
        split: coco: the name in instances_NAME.json
    """
    samples = ShardReader(index_shards(list(shards)))
    if format == "coco":
        dropped = Dropped()
        print("\n".join([f"{to_coco(samples, out, split, dropped)} photos in {out}", *dropped.lines()]))
    elif format == "llava":
        notation = told_codec(codec, grid, frame, min_pixels, max_pixels)
        print(f"{to_llava(samples, out, notation)} rows in {out / 'llava.json'}")
    else:
        print(f"{to_ms_swift(samples, out)} rows in {out / 'ms_swift.jsonl'}")
