"""Lessons of pictures and (question, answer) pairs as packed rows, and the tiny base's loss on them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.experiments.tiny_base.vision import PatchHeads
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.encode import Encoder
from ts_lightning.models.packing import PAD_BRANCH, branch_mask
from ts_lightning.models.routing import Routing, routing


def pack_row(prefix: Sequence[int], branches: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, list[int]]:
    """One row of token ids: the prefix (branch 0), then (prompt, answer) branches 1, 2 ... with restarted positions.

    `targets` marks the tokens of the answers.
    """
    row = {
        "input_ids": list(prefix),
        "position_ids": list(range(len(prefix))),
        "branch": [0] * len(prefix),
        "targets": [0] * len(prefix),
    }
    for number, (prompt, answer) in enumerate(branches, start=1):
        length = len(prompt) + len(answer)
        row["input_ids"] += [*prompt, *answer]
        row["position_ids"] += range(len(prefix), len(prefix) + length)
        row["branch"] += [number] * length
        row["targets"] += [0] * len(prompt) + [1] * len(answer)
    return row


def pad_rows(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded [B, T] tensors of packed rows; `valid` is bool."""
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id, "position_ids": 0, "branch": PAD_BRANCH, "targets": 0}
    batch = {
        name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    batch["valid"] = batch["branch"] != PAD_BRANCH
    return batch


def lesson_row(
    encoder: Encoder,
    images: list[bytes],
    pairs: Sequence[tuple[str, str]],
    labels: Sequence[list[list[int]]],
    most: int,
) -> dict[str, Any]:
    """One packed row of at most `most` tokens, as `pack_row` makes it, with `pixel_values`; late pairs are left out.

    labels: the patch classes of every picture (`models.backbones.tiny_vision`).
    """
    start = encoder.template.user if images else encoder.template.user.rstrip()
    prefix = start + "".join(encoder.image_token * encoder.image_tokens for _ in images)
    gap = "\n" if images else " "
    texts = [prefix]
    for question, answer in pairs:
        texts += [f"{gap}{question}{encoder.template.assistant}", f" {answer}{encoder.template.end}"]
    ids = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
    branches, total = [], len(ids[0])
    for prompt, answer_ids in zip(ids[1::2], ids[2::2], strict=True):
        total += len(prompt) + len(answer_ids)
        if total <= most:
            branches.append((prompt, answer_ids))
    return {**pack_row(ids[0], branches), "pixel_values": encoder.pixels(images), "patch_labels": list(labels)}


def lesson_batch(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Padded rows and all their pictures in one tensor."""
    batch = pad_rows(rows, pad_id)
    batch["pixel_values"] = torch.cat([row["pixel_values"] for row in rows])
    batch["patch_labels"] = torch.tensor([labels for row in rows for labels in row["patch_labels"]])
    return batch


def lesson_logits(
    backbone: Backbone, batch: dict[str, Tensor], collect: bool = False
) -> tuple[Tensor, Tensor, Routing, Tensor | None]:
    """Logits [N, V] and targets [N] of all answer tokens, the routing of the pass, and the image features."""
    ids_BT, features = batch["input_ids"], None
    embeds_BTH = backbone.embedding(ids_BT)
    if len(batch["pixel_values"]):
        features = backbone.encode_images(batch["pixel_values"])
        image_BT = ids_BT == backbone.image_token_id
        embeds_BTH = embeds_BTH.masked_scatter(image_BT[..., None], features.to(embeds_BTH.dtype))
    task_B = torch.zeros(len(ids_BT), dtype=torch.long)
    mask = branch_mask(batch["branch"])
    with routing(task_B, batch["valid"], collect=collect) as context:
        hidden_BTH = backbone.decoder(
            inputs_embeds=embeds_BTH, attention_mask=mask, position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
    target_BT = batch["targets"].bool()
    logits_NV = backbone.head(hidden_BTH[:, :-1][target_BT[:, 1:]])
    return logits_NV, ids_BT[target_BT], context, features


def lesson_loss(
    backbone: Backbone, heads: PatchHeads, batch: dict[str, Tensor], balance_coeff: float
) -> tuple[Tensor, Tensor]:
    """Mean loss of the answer tokens, plus the routers' balance loss and a fifth of the patch loss.

    The second value is the share of answer tokens that argmax gets right.
    """
    logits_NV, targets_N, context, features = lesson_logits(backbone, batch, collect=True)
    loss = F.cross_entropy(logits_NV.float(), targets_N)
    for routed in context.routed.values():
        experts = routed.probs_NE.shape[1]
        share = F.one_hot(routed.ids_NK, experts).float().mean((0, 1))
        loss = loss + balance_coeff * experts * (share * routed.probs_NE.mean(0)).sum()
    if features is not None:
        loss = loss + 0.2 * heads(features, batch["patch_labels"])[0]
    return loss, (logits_NV.argmax(-1) == targets_N).float().mean()
