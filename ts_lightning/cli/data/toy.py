"""`ts-lightning data toy`."""

from pathlib import Path
from typing import Literal

from ts_lightning.pipelines.toy_world.shards import write_multi_image_shards, write_region_shards, write_toy_shards


def toy(
    *,
    out: Path = Path("data_shards/toy_world"),
    train: int = 32000,
    val: int = 400,
    regions: int = 0,
    region_val: int = 900,
    mirg: int = 0,
    mirg_val: int = 2000,
    mirg_style: Literal["grounded", "reasoning", "answer"] = "grounded",
    per_shard: int = 2000,
) -> None:
    """Render the toy world's shards; the same bytes for the same numbers.

        ts-lightning data toy
        ts-lightning data toy --regions 16000 --mirg 12000

    Args:
        out: folder of the shards
        train: grounding questions for training, up to four about a scene
        val: held-out records of each validation suite
        regions: region conversations for training (ChatSpot)
        region_val: held-out region questions
        mirg: multi-image trajectories for SFT, and as many prompts for GRPO
        mirg_val: held-out multi-image questions
        mirg_style: form of the trajectories
        per_shard: records of one shard at most
    """
    write_toy_shards(out, train, val, per_shard)
    if regions:
        write_region_shards(out, regions, region_val, per_shard)
    if mirg:
        write_multi_image_shards(out, mirg, mirg, mirg_val, mirg_style, per_shard)
    print(f"{len(list(out.glob('*.tar')))} shards in {out}")
