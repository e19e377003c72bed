"""What every family must show on its small folder; each check raises AssertionError where it does not."""

import io
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText

from tests.unit.models.hf_families import FAMILIES
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.hf import HFBackbone
from ts_lightning.models.generate import decode, greedy, prefill
from ts_lightning.models.pixels import CLIP_MEAN
from ts_lightning.models.vlm import Recomputed

TOLERANCE = 1e-5


def noise(size: tuple[int, int], seed: int) -> bytes:
    """A PNG of smooth noise: every part of it differs."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(stream, "PNG")
    return stream.getvalue()


def sample(task: str, pictures: int = 1, size: tuple[int, int] = (80, 60), seed: int = 0) -> Sample:
    """A question of one turn with its answer."""
    grounding = task == "grounding"
    return Sample(
        id=f"{task}{seed}",
        key=f"{task}{seed}",
        task=task,
        images=[SampleImage(f"{i}.png", *size) for i in range(pictures)],
        turns=[
            Turn("user", "<image>" * pictures + "Where is the star?"),
            Turn("assistant", "{region:0}" if grounding else "to the left of it"),
        ],
        regions=[SampleRegion(box=(0.25, 0.25, 0.75, 0.5))],
        answer=Answer(regions=[0]) if grounding else Answer("to the left of it"),
        image_bytes=[noise(size, seed + i) for i in range(pictures)],
    )


class Case:
    """One family's folder and what the checks share of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.samples = [
            sample("grounding"),
            sample("understanding", 1, (50, 90), 1),
            sample("grounding", 1, (64, 64), 2),
        ]
        if self.several:
            self.samples.append(sample("understanding", 2, (70, 60), 3))

    @property
    def several(self) -> bool:
        """Whether the family's processor takes several pictures a prompt."""
        return FAMILIES[self.name].several

    def backbone(self) -> HFBackbone:
        return HFBackbone(str(self.folder))

    @cached_property
    def theirs(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(self.folder).eval()

    @cached_property
    def twin(self) -> TwinExpertVLM:
        return TwinExpertVLM(self.backbone(), every=1)

    def inputs(self, one: Sample) -> Any:
        """The prompt as the folder's own processor makes it."""
        processor = self.twin.backbone.processor
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in one.image_bytes]
        if self.twin.encoder.pixel_mode == "pad":
            pictures = [ImageOps.pad(p, (max(p.size),) * 2, color=CLIP_MEAN) for p in pictures]
        text = one.turns[0].text.replace("<image>", "")
        content = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": text}]
        template = FAMILIES[self.name].template
        if template is None:
            rendered = processor.image_token * len(pictures) + text
        else:
            rendered = processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=template, tokenize=False,
                add_generation_prompt=True, enable_thinking=False,
            )  # fmt: skip
        more = (
            {"add_special_tokens": False}
            if template and rendered.startswith(str(processor.tokenizer.bos_token))
            else {}
        )
        return processor(
            text=[rendered], images=[pictures] if len(pictures) > 1 else pictures, return_tensors="pt", **more
        )


def batch_of(vlm: Any, samples: list[Sample], for_generation: bool = False, side: str = "right") -> dict[str, Any]:
    return collate([vlm.encode(s, for_generation) for s in samples], vlm.pad_id, side)


def steps(vlm: Any, samples: list[Sample], number: int = 2) -> None:
    vlm.train()
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.detach().clone() for name, p in vlm.named_parameters() if p.requires_grad}
    for _ in range(number):
        out = vlm(batch_of(vlm, samples))
        torch.nn.functional.cross_entropy(out["logits"], out["targets"]).backward()
        left = [name for name, p in vlm.named_parameters() if p.requires_grad and p.grad is None]
        assert not left, left  # DDP would wait for them
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(p, before[name]) for name, p in vlm.named_parameters() if name in before)
    vlm.eval()


def logits(vlm: Any, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return vlm.eval()(batch_of(vlm, samples))["logits"]


def rows(case: Case) -> None:
    for one in case.samples:
        row, expected = case.twin.encode(one, True), case.inputs(one)
        assert row["input_ids"].tolist() == expected["input_ids"][0].tolist()
        for name, value in row["pictures"].items():
            assert torch.equal(value, expected[name]), name  # bitwise: the same processor on the same picture


def same_logits(case: Case) -> None:
    for one in case.samples:
        batch = batch_of(case.twin, [one], True, "left")
        batch["task"] = torch.zeros_like(batch["task"])
        with torch.no_grad():
            ours = prefill(case.twin.eval(), batch).logits_BV
            theirs = case.theirs(**case.inputs(one), use_cache=False).logits[:, -1]
        torch.testing.assert_close(ours[:, : theirs.shape[1]], theirs, atol=TOLERANCE, rtol=TOLERANCE)


def retention(case: Case) -> None:
    asked = [s for s in case.samples if s.task == "understanding"]
    vlm = case.twin
    before = logits(vlm, asked)
    grounded = logits(vlm, case.samples[:1])
    steps(vlm, case.samples)
    assert torch.equal(before, logits(vlm, asked))  # bitwise: the same modules on the same batch
    assert not torch.equal(grounded, logits(vlm, case.samples[:1]))


def cache(case: Case) -> None:
    vlm = case.twin.eval()
    encoded = [vlm.encode(s, True) for s in case.samples]
    with torch.no_grad():
        said = torch.stack(list(decode(prefill(vlm, collate(encoded, vlm.pad_id, "left")), greedy, {-1}, 4)), 1)
        for row, answer in zip(encoded, said, strict=True):  # alone, and without a cache: one prefill a token
            for count in range(4):
                batch = collate([extended(row, answer[:count])], vlm.pad_id, "left")
                logits_V = prefill(vlm, batch).logits_BV[0]
                logits_V[[vlm.pad_id, vlm.backbone.image_token_id]] = -torch.inf
                best = logits_V.max()
                assert best - logits_V[answer[count]] < 1e-4


def extended(row: dict[str, Any], more: torch.Tensor) -> dict[str, Any]:
    """A row with tokens of its answer behind it; positions go on from the largest."""
    row = dict(row)
    row["input_ids"] = torch.cat([row["input_ids"], more])
    row["step_ids"] = torch.cat([row["step_ids"], torch.full_like(more, 0)])
    if "position_ids" in row and len(more):
        new = row["position_ids"].max() + 1 + torch.arange(len(more))
        row["position_ids"] = torch.cat([row["position_ids"], new.expand(*row["position_ids"].shape[:-1], -1)], -1)
    return row


def padding(case: Case) -> None:
    right, left = (batch_of(case.twin, case.samples, side=side) for side in ("right", "left"))
    with torch.no_grad():
        a, b = (case.twin.eval()(batch)["logits"] for batch in (right, left))
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def saved(case: Case) -> None:
    expected = logits(case.twin, case.samples)
    with tempfile.TemporaryDirectory() as folder:
        case.twin.save_pretrained(Path(folder) / "package")
        backbone = case.backbone()
        backbone.save(Path(folder) / "base")
        again = HFBackbone(str(Path(folder) / "base"))
        assert again.identity()["sha256"] == case.twin.identity()["sha256"]
        seen = logits(TwinExpertVLM.from_pretrained(Path(folder) / "package", again), case.samples)
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)  # weights that were read lie elsewhere


def lora(case: Case) -> None:
    steps(LoRAVLM(case.backbone(), rank=2), case.samples[:1], 1)


def full(case: Case) -> None:
    gradients = []
    for what in ("none", "block"):
        vlm = PlainVLM(case.backbone(), activation_checkpointing=what).train()
        beside = {*vlm.backbone.model.modules()} - {*vlm.backbone.decoder.modules()}
        assert any(isinstance(module, Recomputed) for module in beside) == (what == "block")  # the tower's blocks
        torch.manual_seed(0)
        vlm(batch_of(vlm, case.samples[:2]))["logits"].square().mean().backward()
        gradients.append({name: p.grad for name, p in vlm.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():  # bitwise: a recomputed product is the same product
        assert torch.equal(gradient, gradients[1][name]), name
    vlm.zero_grad()
    steps(vlm, case.samples[:2], 1)


CHECKS: dict[str, Callable[[Case], None]] = {
    "rows and pixels": rows,
    "logits": same_logits,
    "cache": cache,
    "padding": padding,
    "understanding kept": retention,
    "saved": saved,
    "LoRA": lora,
    "full": full,
}
