#!/usr/bin/env python
"""Train the understanding-only base of the tiny default on the toy world.

    python -m tools.experiments.make_tiny_base --out outputs/tiny_base

The vision tower first learns to say what covers each patch, then everything learns from lessons (pictures with
questions, pure text). Goes on from OUT/last.pt; the base itself is in OUT/base. A run can be prolonged: the learning
rate is constant and falls to zero over the last `--decay` of `--steps` steps.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from tools.experiments.tiny_base.curriculum import lesson, tokenizer_lines
from tools.experiments.tiny_base.lessons import lesson_batch, lesson_row
from tools.experiments.tiny_base.patches import LABELS, RANGE_CLASSES, labelled_picture
from tools.experiments.tiny_base.tokenizer import train_tokenizer
from tools.experiments.tiny_base.training import make_optimizer, restore, save, train_lessons
from tools.experiments.tiny_base.vision import PatchHeads, pretrain_vision
from ts_lightning.models.backbones.tiny import SHIPPED, TinyBackbone
from ts_lightning.models.encode import Encoder


class Lessons(Dataset):
    """Lesson number i, packed; nothing is random but the number."""

    def __init__(self, encoder: Encoder, start: int, total: int) -> None:
        self.encoder, self.start, self.total = encoder, start, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict:
        torch.set_num_threads(1)
        return lesson_row(self.encoder, *lesson(self.start + index), most=320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/tiny_base"))
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--decay", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=6500)
    parser.add_argument("--pictures", type=int, default=56000)
    args = parser.parse_args()
    if not (SHIPPED / "tokenizer.json").is_file():
        train_tokenizer(tokenizer_lines()).save_pretrained(SHIPPED)
    args.out.mkdir(parents=True, exist_ok=True)
    backbone = TinyBackbone(pretrained=None, seed=args.seed)
    backbone.requires_grad_(True).train()
    words = [backbone.encoder.token_ids([f" {word}" for word in words]) for words in LABELS.values()]
    heads = PatchHeads(backbone.embedding, words, RANGE_CLASSES)
    optimizer = make_optimizer(backbone, heads, args.lr)
    first = restore(backbone, heads, optimizer, args.out / "last.pt")
    if first is None:
        first = 0
        side = int(backbone.encoder.image_tokens**0.5)
        pictures, labels = zip(*(labelled_picture(i, side) for i in range(args.pictures)), strict=True)
        pixels = backbone.encoder.pixels(list(pictures))
        pretrain_vision(backbone, heads, pixels, torch.tensor(labels), args.vision_steps)
        save(backbone, heads, None, 0, args.out)
    data = Lessons(backbone.encoder, args.seed + first * args.batch, (args.steps - first) * args.batch)
    pad = backbone.encoder.tokenizer.pad_token_id
    loader = DataLoader(data, args.batch, num_workers=1, prefetch_factor=6, collate_fn=lambda r: lesson_batch(r, pad))
    train_lessons(backbone, heads, optimizer, loader, args.out, first, args.steps, args.decay, args.lr)


if __name__ == "__main__":
    main()
