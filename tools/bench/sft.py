"""One training step of the frozen twin with answer-only logits, against training every parameter with full logits.

Both are the same `TwinExpertVLM` with the same weights and rows; losses and the experts' gradients are compared first.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.bench.harness import Step, interleave, ratio, relative_error, report, saved_bytes
from ts_lightning.losses import answer_nll, stepwise_loss
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone

ROWS, LENGTH, ANSWER = 1, 700, 60
HIDDEN, LAYERS, HEADS = 768, 4, 12
VOCABULARY = 4096  # the tiny tokenizer is smaller; a head of a real model weighs more


def make_vlm(train_all: bool) -> TwinExpertVLM:
    """Build the twin from one seed, frozen but for its experts, routers and alpha, or all trainable."""
    backbone = TinyBackbone(
        pretrained=None, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_layers=LAYERS, num_heads=HEADS
    )
    torch.manual_seed(0)
    model: Any = backbone.model
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    vlm = TwinExpertVLM(backbone)
    vlm.train()
    if train_all:
        backbone.requires_grad_(True)
    return vlm


def make_batch() -> dict[str, Any]:
    """Text rows of the skill, the loss on the last `ANSWER` tokens."""
    generator = torch.Generator().manual_seed(0)
    step_ids_BT = torch.full((ROWS, LENGTH), -1)
    step_ids_BT[:, LENGTH - ANSWER :] = 0
    return {
        "input_ids": torch.randint(100, 200, (ROWS, LENGTH), generator=generator),
        "valid": torch.ones(ROWS, LENGTH, dtype=torch.bool),
        "position_ids": torch.arange(LENGTH).expand(ROWS, LENGTH),
        "step_ids": step_ids_BT,
        "pixel_values": torch.zeros(0, 3, 96, 96, dtype=torch.uint8),
        "task": torch.ones(ROWS, dtype=torch.long),
    }


def answer_loss(vlm: TwinExpertVLM, batch: dict[str, Any]) -> Tensor:
    """Return the stepwise loss (`sum`) over logits at the answer's positions only."""
    nll_BT = answer_nll(vlm(batch), batch["step_ids"])
    return stepwise_loss(nll_BT, batch["step_ids"], "sum").sum() / ROWS


def full_loss(vlm: TwinExpertVLM, batch: dict[str, Any]) -> Tensor:
    """Return the same loss as most trainers compute it: logits everywhere, labels of -100 off the answer."""
    with vlm.routing(batch) as context:
        hidden_BTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(batch, context), position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
    logits_BTV = vlm.backbone.head(hidden_BTH).float()
    labels_BT = batch["input_ids"].masked_fill(batch["step_ids"] < 0, -100)
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum") / ROWS


def training_step(vlm: TwinExpertVLM, loss: Callable[..., Tensor], batch: dict[str, Any]) -> Step:
    """Return forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(vlm, batch).backward()
        optimizer.step()

    return step


def main(rounds: int = 5) -> int:
    """Compare loss and gradients of both, then time them; the ratio is ours / all trainable."""
    batch = make_batch()
    frozen, trainable = make_vlm(train_all=False), make_vlm(train_all=True)
    losses = [answer_loss(frozen, batch), full_loss(trainable, batch)]
    for loss in losses:
        loss.backward()
    reached = {name: p.grad for name, p in trainable.named_parameters() if p.grad is not None}
    errors = [relative_error(p.grad, reached[n]) for n, p in frozen.named_parameters() if p.grad is not None]
    error = max(relative_error(*losses), *errors)
    if error > 1e-4:
        return report("sft", False, ratios={}, floor_ratio=None, max_relative_error=error)
    weights = {name: list(vlm.parameters()) for name, vlm in (("ours", frozen), ("all", trainable))}
    kept = {
        "ours": saved_bytes(lambda: answer_loss(frozen, batch), weights["ours"]),
        "all": saved_bytes(lambda: full_loss(trainable, batch), weights["all"]),
    }
    seconds = interleave(
        {
            "ours": training_step(frozen, answer_loss, batch),
            "all_trainable": training_step(trainable, full_loss, batch),
            "all_trainable_answer_logits": training_step(trainable, answer_loss, batch),
        },
        rounds,
    )
    counts = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in weights.items()}
    return report(
        "sft",
        True,
        ratios={peer: ratio(seconds, "ours", peer) for peer in seconds if peer != "ours"},
        floor_ratio=None,
        saved_bytes_ratio=round(kept["ours"] / kept["all"], 3),
        max_relative_error=error,
        trainable_parameters=counts,
        threads=torch.get_num_threads(),
    )
