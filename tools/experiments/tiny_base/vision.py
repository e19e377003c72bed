"""Training aid of the tiny vision tower: say in classes what covers each patch.

The linear heads are thrown away with the training. Legend: N pictures, P patches of one, C classifications of a patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ts_lightning.models.backbones.base import Backbone


class PatchHeads(nn.Module):
    """C classifiers over image features; class 0 is the background.

    The first ones choose among words, by the language model's own embeddings: so pictures and words come to share
    directions, as CLIP's do, and attention can match them. The others are linear.
    """

    def __init__(self, embedding: nn.Embedding, words: list[list[int]], classes: list[int]) -> None:
        """words: token ids of classes 1, 2 ... of the first classifications; classes: sizes of the linear ones."""
        super().__init__()
        self.embedding = [embedding]  # not a part of this module
        self.words, self.classes = words, classes
        self.background = nn.Parameter(torch.zeros(len(words), embedding.embedding_dim))
        self.linear = nn.Linear(embedding.embedding_dim, sum(classes))

    def forward(self, features_NPH: Tensor, labels_NPC: Tensor) -> tuple[Tensor, list[float]]:
        """Sum over classifications of the mean cross-entropy; the share that is right on patches of objects."""
        normal_NPH = F.layer_norm(features_NPH, features_NPH.shape[-1:])
        weight_VH = self.embedding[0].weight
        word_scores = [
            normal_NPH @ torch.cat([background[None], weight_VH[ids]]).T
            for background, ids in zip(self.background, self.words, strict=True)
        ]
        scores, wanted = (*word_scores, *self.linear(features_NPH).split(self.classes, -1)), labels_NPC.unbind(-1)
        pairs = list(zip(scores, wanted, strict=True))
        losses = [F.cross_entropy(score.flatten(0, 1), label.flatten()) for score, label in pairs]
        object_NP = wanted[0] > 0
        right = [(score.argmax(-1) == label)[object_NP].float().mean().item() for score, label in pairs]
        return torch.stack(losses).sum(), right


def pretrain_vision(
    backbone: Backbone,
    heads: PatchHeads,
    pixels_N3SS: Tensor,
    labels_NPC: Tensor,
    steps: int,
    batch: int = 48,
    lr: float = 2e-3,
) -> None:
    """Train `backbone.image_features` and the heads on uint8 pictures and their patch labels, in a fixed order."""
    generator = torch.Generator().manual_seed(0)
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100, (steps - step) / (steps / 2))
        chosen = torch.randint(len(pixels_N3SS), (batch,), generator=generator)
        loss, right = heads(backbone.encode_images(pixels_N3SS[chosen]), labels_NPC[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"vision step {step + 1}: right on object patches {[round(r, 3) for r in right]}", flush=True)
