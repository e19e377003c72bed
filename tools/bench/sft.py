"""One training step of the frozen twin, against plain autograd over the same trainable set and against training all.

All are the same `TwinExpertVLM` with the same weights and rows, pictures and padding included; losses and the experts'
gradients are compared first. transformers' `Trainer` runs the plain form, each of its steps beside one of ours. Seconds
are CPU time of the process.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from tools.bench.full_step import batch_of, compare, make_twin, rows_about, skipped
from tools.bench.harness import Step, interleave, ratio, relative_error, report, saved_bytes, spread
from ts_lightning.data.collate import collate
from ts_lightning.losses import answer_nll, stepwise_loss
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.moe import MoE, moe_loop

LENGTHS, PICTURE, ANSWER = (420, 320), 36, 60  # tokens of each row, of them its picture's, and its answer's
HIDDEN, LAYERS, HEADS = 768, 4, 12
PICTURES = 4  # of a step at full geometry, one question each
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


def make_batch(vlm: TwinExpertVLM) -> dict[str, Any]:
    """Rows of the skill about a picture each, the loss on the last `ANSWER` tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in LENGTHS:
        ids_T = torch.randint(100, 200, (length,), generator=generator)
        ids_T[:PICTURE] = vlm.backbone.image_token_id
        pixels = torch.randint(0, 256, (1, 3, 96, 96), generator=generator, dtype=torch.uint8)
        step_ids_T = torch.where(torch.arange(length) < length - ANSWER, -1, 0)
        rows.append({"input_ids": ids_T, "step_ids": step_ids_T, "pixel_values": pixels, "task": 1, "sample": length})
    return collate(rows, vlm.pad_id)


def answer_loss(vlm: TwinExpertVLM, batch: dict[str, Any]) -> Tensor:
    """Return the stepwise loss (`sum`) over logits at the answer's positions only."""
    nll_BT = answer_nll(vlm(batch), batch["step_ids"])
    return stepwise_loss(nll_BT, batch["step_ids"], "sum").sum() / len(LENGTHS)


def full_loss(vlm: TwinExpertVLM, batch: dict[str, Any]) -> Tensor:
    """Return the same loss as most trainers compute it: a mask for pads, logits everywhere, labels of -100."""
    with vlm.routing(batch) as context:
        hidden_BTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(batch, context),
            attention_mask=batch["valid"].long(),
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
    logits_BTV = vlm.backbone.head(hidden_BTH).float()
    labels_BT = batch["input_ids"].masked_fill(batch["step_ids"] < 0, -100)
    nll = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum")
    return nll / len(LENGTHS)


def plain_loss(vlm: TwinExpertVLM, batch: dict[str, Any]) -> Tensor:
    """Return `full_loss` by experts in a plain loop, each of autograd's own."""
    with patch.object(MoE, "_path", lambda moe, x_TH: moe_loop):
        return full_loss(vlm, batch)


def training_step(vlm: TwinExpertVLM, loss: Callable[..., Tensor], batch: dict[str, Any]) -> Step:
    """Return forward, backward and AdamW."""
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(vlm, batch).backward()
        optimizer.step()

    return step


class Plain(nn.Module):
    """`plain_loss` as `Trainer` wants it."""

    def __init__(self, vlm: TwinExpertVLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss."""
        return {"loss": plain_loss(self.vlm, batch)}


class Clock(TrainerCallback):
    """Times steps of `Trainer` and, behind each, one of ours; the first round is warm-up and keeps its gradients."""

    def __init__(self, vlm: TwinExpertVLM, ours: Step) -> None:
        self.vlm, self.ours = vlm, ours
        self.seconds: dict[str, list[float]] = {"trainer": [], "ours": []}
        self.gradients: dict[str, Tensor] = {}

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep the first step's gradients."""
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in self.vlm.named_parameters() if p.grad is not None}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, and run ours."""
        times = [time.process_time() - self.start]
        self.start = time.process_time()
        self.ours()
        times.append(time.process_time() - self.start)
        for name, value in zip(self.seconds, times, strict=True):
            self.seconds[name] += [value] if state.global_step > 1 else []


def beside_trainer(vlm: TwinExpertVLM, batch: dict[str, Any], rounds: int) -> Clock:
    """Run `Trainer` on the plain form of the same trainable set, with AdamW and without clipping, as ours."""
    clock = Clock(vlm, training_step(vlm, answer_loss, batch))
    with tempfile.TemporaryDirectory() as folder:
        given = TrainingArguments(
            output_dir=folder,
            max_steps=rounds + 1,
            per_device_train_batch_size=1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="adamw_torch",
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        rows: Any = [tensors] * (rounds + 1)
        made: dict[str, Any] = {"data_collator": lambda found: {"batch": found[0]}, "callbacks": [clock]}
        Trainer(Plain(vlm), given, train_dataset=rows, **made).train()
    return clock


def gradients(vlm: TwinExpertVLM, loss: Callable[..., Tensor], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss, and the gradients of what trains in it."""
    vlm.zero_grad()
    value = loss(vlm, batch)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


def full(rounds: int, model: str, device: str) -> int:
    """Steps of a paper's model on a question about each of four pictures, against the plain form of the twin."""
    if device == "cuda" and not torch.cuda.is_available():
        return skipped("sft", model)
    vlm = make_twin(model, device)
    batches = [batch_of(vlm, [row for picture in range(PICTURES) for row in rows_about(vlm, picture, 1)], device)]
    forms = {"ours": (answer_loss, batches), "plain_twin": (full_loss, batches)}

    def around(name: str, step: Callable[[], Any]) -> Callable[[], Any]:
        def plain() -> Any:
            with patch.object(MoE, "_path", lambda moe, x_TH: moe_loop):  # what is recomputed in backward, too
                return step()

        return plain if name == "plain_twin" else step

    return compare("sft", model, device, vlm, forms, forms, rounds, around)


def main(rounds: int = 5, model: str | None = None, device: str = "cuda") -> int:
    """Compare loss and gradients of all, then time them; each ratio is ours / the peer.

    `model` is one of the papers', at full geometry on `device`; None: the small one on the CPU.
    """
    if model is not None:
        return full(rounds, model, device)
    frozen, trainable = make_vlm(train_all=False), make_vlm(train_all=True)
    batch = make_batch(frozen)
    expected_loss, expected = gradients(frozen, answer_loss, batch)
    errors = []
    for vlm, loss in ((trainable, full_loss), (frozen, plain_loss)):
        seen, found = gradients(vlm, loss, batch)
        errors += [relative_error(seen, expected_loss), *(relative_error(found[n], g) for n, g in expected.items())]
    clock = beside_trainer(frozen, batch, rounds)
    errors += [relative_error(clock.gradients[name], gradient) for name, gradient in expected.items()]
    error = max(errors)
    if error > 1e-4:
        return report("sft", False, ratios={}, floor_ratio=None, max_relative_error=error)
    weights = {name: list(vlm.parameters()) for name, vlm in (("ours", frozen), ("all", trainable))}
    kept = {
        "ours": saved_bytes(lambda: answer_loss(frozen, batch), weights["ours"]),
        "plain_twin": saved_bytes(lambda: plain_loss(frozen, batch), weights["ours"]),
        "all": saved_bytes(lambda: full_loss(trainable, batch), weights["all"]),
    }
    seconds = interleave(
        {
            "ours": training_step(frozen, answer_loss, batch),
            "plain_twin": training_step(frozen, plain_loss, batch),
            "all_trainable": training_step(trainable, full_loss, batch),
            "all_trainable_answer_logits": training_step(trainable, answer_loss, batch),
        },
        rounds,
        time.process_time,
    )
    counts = {name: sum(p.numel() for p in ps if p.requires_grad) for name, ps in weights.items()}
    return report(
        "sft",
        True,
        ratios={peer: ratio(seconds, "ours", peer) for peer in seconds if peer != "ours"}
        | {"transformers_trainer": ratio(clock.seconds, "ours", "trainer")},
        spread={peer: spread(seconds, "ours", peer) for peer in seconds if peer != "ours"}
        | {"transformers_trainer": spread(clock.seconds, "ours", "trainer")},
        floor_ratio=None,
        saved_bytes_ratio={peer: round(kept["ours"] / kept[peer], 3) for peer in ("plain_twin", "all")},
        max_relative_error=error,
        trainable_parameters=counts,
        threads=torch.get_num_threads(),
    )
