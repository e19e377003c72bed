#!/usr/bin/env python
"""Train the understanding-only base of the tiny default on the toy world.

    python tools/make_tiny_base.py --out outputs/tiny_base --steps 9000

Writes a checkpoint every `--save-every` steps and goes on from it; the learning rate is constant and falls to zero over
the last `--decay` steps, so a run can be prolonged. The base is written to OUT/base at every checkpoint.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ts_lightning.models.backbones.tiny import SHIPPED, TinyBackbone
from ts_lightning.models.backbones.tiny_lessons import lesson_batch, lesson_loss, lesson_row
from ts_lightning.models.backbones.tiny_tokenizer import train_tokenizer
from ts_lightning.pipelines.toy_world.curriculum import lesson, tokenizer_lines


class Lessons(Dataset):
    """Lesson number i, packed; nothing is random but the seed."""

    def __init__(self, encoder: object, start: int, total: int) -> None:
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
    parser.add_argument("--decay", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    if not (SHIPPED / "tokenizer.json").is_file():
        train_tokenizer(tokenizer_lines()).save_pretrained(SHIPPED)
    args.out.mkdir(parents=True, exist_ok=True)
    backbone = TinyBackbone(pretrained=None, seed=args.seed)
    backbone.requires_grad_(True).train()
    matrices = [p for p in backbone.parameters() if p.ndim > 1]
    vectors = [p for p in backbone.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    first, saved = 0, args.out / "last.pt"
    if saved.is_file():
        state = torch.load(saved, weights_only=True)
        backbone.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    data = Lessons(backbone.encoder, args.seed + first * args.batch, (args.steps - first) * args.batch)
    pad = backbone.encoder.tokenizer.pad_token_id
    loader = DataLoader(data, args.batch, num_workers=1, prefetch_factor=6, collate_fn=lambda r: lesson_batch(r, pad))
    began = time.monotonic()
    for step, batch in enumerate(loader, start=first + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, step / 300, (args.steps - step + 1) / args.decay)
        loss, correct = lesson_loss(backbone, batch, balance_coeff=0.01)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            seconds = round(time.monotonic() - began)
            line = {"step": step, "loss": round(loss.item(), 4), "correct": round(correct.item(), 4), "seconds": seconds}
            print(json.dumps(line), flush=True)
        if step % args.save_every == 0 or step == args.steps:
            state = {"model": backbone.model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, args.out / "tmp.pt")
            (args.out / "tmp.pt").replace(saved)
            backbone.save(args.out / "base")


if __name__ == "__main__":
    main()
