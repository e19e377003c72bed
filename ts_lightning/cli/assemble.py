"""`ts-lightning assemble`."""

from pathlib import Path
from typing import Literal


def assemble(
    *,
    language: Path,
    vision: Path,
    out: Path,
    projector: Literal["linear", "mlp"] = "linear",
    dtype: str = "bfloat16",
    seed: int = 0,
) -> None:
    r"""Write a LLaVA folder out of a LLaMA (Vicuna) folder and a CLIP folder; its projector is random.

        ts-lightning assemble --language checkpoints/vicuna-7b --vision checkpoints/clip-vit-large-patch14 \
            --out checkpoints/vicuna-7b-clip-vit-l-14

    A linear projector is ChatSpot's, which trains it in its first stage; mlp is LLaVA-1.5's.

    Args:
        language: folder of a LLaMA, with tokenizer.json
        vision: folder of a CLIP model or of its vision tower
        out: folder to write
        projector: linear or mlp
        dtype: of the weights that are written
        seed: of the projector
    """
    from ts_lightning.models.backbones.llava_parts import assemble as write

    write(language, vision, out, projector, dtype, seed)
    print(f"{projector} projector: {out}")
