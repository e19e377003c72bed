#!/usr/bin/env python
"""Write a LLaVA folder out of a LLaMA (Vicuna) folder and a CLIP folder; its projector is random.

    python tools/assemble_llava.py --language checkpoints/vicuna-7b --vision checkpoints/clip-vit-large-patch14 \
        --projector linear --out checkpoints/vicuna-7b-clip-vit-l-14

A linear projector is ChatSpot's, which trains it in its first stage; mlp is LLaVA-1.5's.
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.models.backbones.llava_parts import assemble


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--language", type=Path, required=True, help="folder of a LLaMA, with tokenizer.json")
    parser.add_argument("--vision", type=Path, required=True, help="folder of a CLIP model or of its vision tower")
    parser.add_argument("--projector", choices=("linear", "mlp"), default="linear")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        assemble(args.language, args.vision, args.out, args.projector, args.dtype, args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.projector} projector: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
