"""A training step on eight questions about each of some pictures: in a row each, behind their picture, or joined too.

And, as evaluation has it, the prompts of one picture's questions until the first token of each answer.

LLaVA's picture of 576 tokens and about 100 tokens of text a question, at a hidden size that a CPU can take. Legend:
T tokens of a row.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.bench.full_step import batch_of, compare, make_twin, rows_about, skipped
from tools.bench.harness import Step, interleave, ratio, relative_error, report, spread
from ts_lightning.data.collate import collate, deal, join
from ts_lightning.losses import Stepwise
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.generate import prefill
from ts_lightning.models.packing import pack_questions
from ts_lightning.models.vlm import VLM

HIDDEN, LAYERS, HEADS, SIDE, PATCH = 768, 2, 12, 336, 14
QUESTIONS, TEXT, ANSWER = 8, (80, 121), 30  # tokens of text: from, below; of them the answer
MICRO_BATCH = 8  # separate rows of one forward
LOSS = Stepwise("step_mean", 0.01)


def make_vlm() -> VLM:
    """A twin in the first of two layers over a decoder and a tower of one layer."""
    backbone = TinyBackbone(
        pretrained=None, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_layers=LAYERS, num_heads=HEADS,
        vision_layers=1, image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    torch.manual_seed(0)
    return TwinExpertVLM(backbone, num_experts=2).train()


def make_rows(vlm: VLM, pictures: int) -> list[list[dict[str, Any]]]:
    """Encoded rows of the questions about each picture."""
    generator = torch.Generator().manual_seed(0)
    tokens = (SIDE // PATCH) ** 2
    records = []
    for number in range(pictures):
        pixels = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        rows = []
        for question in range(QUESTIONS):
            length = int(torch.randint(*TEXT, (1,), generator=generator))
            text_T = torch.randint(100, 200, (length,), generator=generator)
            ids_T = torch.cat([torch.full((tokens,), vlm.backbone.image_token_id), text_T])
            step_ids_T = torch.full_like(ids_T, -1)
            step_ids_T[-ANSWER:] = 0
            name = f"{number}-{question}"
            rows.append({"input_ids": ids_T, "step_ids": step_ids_T, "pixel_values": pixels, "task": 1, "sample": name})
        records.append(rows)
    return records


def loss_of(vlm: VLM, batch: dict[str, Any]) -> Tensor:
    """The sum over the questions of a micro-batch."""
    return LOSS(vlm(batch), batch)["loss"].sum()


def gradients(vlm: VLM, batches: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of all micro-batches, and the gradients of what trains."""
    vlm.zero_grad()
    losses = []
    for batch in batches:
        loss = loss_of(vlm, batch)
        loss.backward()
        losses.append(loss.detach())
    found = {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}
    return torch.stack(losses).sum(), found


def training_step(vlm: VLM, batches: list[dict[str, Any]]) -> Step:
    """Forward, backward and AdamW over all micro-batches."""
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            loss_of(vlm, batch).backward()
        optimizer.step()

    return step


def prompts(vlm: VLM, rows: list[dict[str, Any]], packed: bool) -> Callable[[], Tensor]:
    """Read questions about one picture; returns the logits of their next tokens."""
    asked = [row | {"step_ids": torch.full_like(row["step_ids"], -1)} for row in rows]
    asked = pack_questions(asked, vlm.backbone.image_token_id) if packed else asked
    batch = collate(asked, vlm.pad_id, "left")

    @torch.no_grad()
    def step() -> Tensor:
        return prefill(vlm, batch).logits_BV

    return step


def pad_share(batches: list[dict[str, Any]]) -> float:
    """Positions that are padding."""
    positions = sum(batch["valid"].numel() for batch in batches)
    return round(1 - sum(int(batch["valid"].sum()) for batch in batches) / positions, 4)


def full(rounds: int, pictures: int, model: str, device: str) -> int:
    """Steps of a paper's model, its questions behind their picture, in a row each, or joined too."""
    if device == "cuda" and not torch.cuda.is_available():
        return skipped("packing", model)
    vlm = make_twin(model, device)
    records = [rows_about(vlm, picture, QUESTIONS) for picture in range(pictures)]
    rows = [row for record in records for row in record]
    packed = [row for record in records for row in pack_questions(record, vlm.backbone.image_token_id)]
    pairs = [packed[i : i + 2] for i in range(0, len(packed), 2)]
    separate = [rows[i : i + MICRO_BATCH] for i in range(0, len(rows), MICRO_BATCH)]
    forms = {
        "packed": (loss_of, [batch_of(vlm, part, device) for part in pairs]),
        "separate_rows": (loss_of, [batch_of(vlm, part, device) for part in separate]),
    }
    if vlm.encoder.joins:
        forms["joined"] = (loss_of, [batch_of(vlm, part, device, joined=True) for part in pairs])
    return compare("packing", model, device, vlm, forms, forms, rounds)


def main(rounds: int = 5, pictures: int = 4, model: str | None = None, device: str = "cuda") -> int:
    """Compare loss, gradients and prompts of one picture's questions, then time; ratios are packed / separate.

    `model` is one of the papers', at full geometry on `device`; None: the small one on the CPU.
    """
    if model is not None:
        return full(rounds, pictures, model, device)
    vlm = make_vlm()
    records = make_rows(vlm, pictures)
    image_id = vlm.backbone.image_token_id
    rows = [row for record in records for row in record]
    packed_rows = [row for record in records for row in pack_questions(record, image_id)]
    separate = [collate(part, vlm.pad_id) for part in deal(rows, len(rows) // MICRO_BATCH)]
    packed = [collate(part, vlm.pad_id) for part in deal(packed_rows, len(packed_rows) // 2)]
    joined = [collate(join(part), vlm.pad_id) for part in deal(packed_rows, len(packed_rows) // 2)]
    one = [collate(records[0], vlm.pad_id)], [collate(pack_questions(records[0], image_id), vlm.pad_id)]
    errors = []
    for theirs, ours in (one, (packed[:1], joined[:1])):
        (expected_loss, expected), (loss, found) = gradients(vlm, theirs), gradients(vlm, ours)
        errors += [relative_error(loss, expected_loss), *(relative_error(found[n], g) for n, g in expected.items())]
    read = {"prompts": prompts(vlm, records[0], True), "separate_prompts": prompts(vlm, records[0], False)}
    error = max(*errors, relative_error(*(step() for step in read.values())))
    batches = {"packed": packed, "separate": separate, "joined": joined}
    figures = {
        "pad_share": {name: pad_share(each) for name, each in batches.items()},
        "positions": {name: sum(b["valid"].numel() for b in each) for name, each in batches.items()},
    }
    if error > 1e-5:
        return report("packing", False, ratios={}, floor_ratio=None, max_relative_error=error, **figures)
    seconds = interleave({name: training_step(vlm, each) for name, each in batches.items()}, rounds)
    reading = interleave(read, rounds)
    return report(
        "packing",
        True,
        ratios={
            "separate_rows": ratio(seconds, "packed", "separate"),
            "joined/separate_rows": ratio(seconds, "joined", "separate"),
            "prompts": ratio(reading, "prompts", "separate_prompts"),
        },
        floor_ratio=None,
        questions=len(rows),
        spread={name: spread(seconds, name, "separate") for name in ("packed", "joined")}
        | {"prompts": spread(reading, "prompts", "separate_prompts")},
        questions_per_second={name: round(len(rows) / statistics.median(s), 2) for name, s in seconds.items()},
        max_relative_error=error,
        **figures,
        threads=torch.get_num_threads(),
    )
