"""Pre-training of the tiny vision tower: say in classes what covers each patch. No coordinate is ever a target."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ts_lightning.models.backbones.base import Backbone


def pretrain_vision(
    backbone: Backbone, pixels_N3SS: Tensor, labels_NPC: Tensor, steps: int, batch: int = 48, lr: float = 2e-3
) -> float:
    """Train `backbone.image_features` on patch labels (C classifications a patch); returns the last batches' accuracy.

    pixels are uint8, labels class numbers; the linear heads are thrown away. Order and noise come from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    classes = [int(n) + 1 for n in labels_NPC.amax((0, 1))]
    heads = nn.Linear(backbone.embedding.embedding_dim, sum(classes))
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    right = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100, (steps - step) / (steps / 2))
        chosen = torch.randint(len(pixels_N3SS), (batch,), generator=generator)
        scores = heads(backbone.encode_images(pixels_N3SS[chosen])).split(classes, -1)
        wanted = labels_NPC[chosen].unbind(-1)
        loss = sum(F.cross_entropy(s.flatten(0, 1), w.flatten()) for s, w in zip(scores, wanted, strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        object_BP = wanted[0] > 0
        hits = torch.stack([s.argmax(-1) == w for s, w in zip(scores, wanted, strict=True)]).all(0)
        right = [*right[-19:], hits[object_BP].float().mean().item()]
        if step % 100 == 99:
            print(f"vision step {step + 1}: object patches right {sum(right) / len(right):.3f}", flush=True)
    return sum(right) / len(right)
