"""The vlm on a CUDA device; skipped where there is none.

Bitwise: the same kernels of one device on the same shapes and rows.
"""

from itertools import groupby

import pytest
import torch

from ts_lightning.data.collate import collate
from ts_lightning.models import PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.packing import pack_questions
from ts_lightning.pipelines.toy_world.shards import grounding_samples, understanding_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 4, "vision_layers": 1, "num_heads": 2}


def batch_on(device: str, vlm: PlainVLM, samples: list, for_generation: bool = False) -> dict:
    rows = [vlm.encode(sample, for_generation) for sample in samples]
    batch = collate(rows, vlm.pad_id, "left" if for_generation else "right")
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@torch.no_grad()
def test_understanding_is_bitwise_the_base_on_cuda() -> None:
    tuned = TwinExpertVLM(TinyBackbone(None, **SIZES), train_token_rows=["codec"]).cuda().eval()
    base = PlainVLM(TinyBackbone(None, **SIZES)).cuda().eval()
    rows = batch_on("cuda", tuned, list(understanding_samples("train", 8)))
    assert torch.equal(tuned(rows)["logits"], base(rows)["logits"])


def test_gradients_equal_the_cpus() -> None:
    samples, gradients = list(grounding_samples("train", 8)), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        vlm = TwinExpertVLM(TinyBackbone(None, **SIZES), train_token_rows=["codec"]).to(device).train()
        vlm(batch_on(device, vlm, samples))["logits"].square().mean().backward()
        gradients.append({n: p.grad.cpu() for n, p in vlm.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_block_masks_of_packed_rows_equal_the_cpus_dense_ones() -> None:
    samples, found = list(grounding_samples("train", 6, per_scene=6)), []
    for device in ("cpu", "cuda"):  # "auto": dense on the one, FlexAttention on the other
        torch.manual_seed(0)
        vlm = TwinExpertVLM(TinyBackbone(None, **SIZES), train_token_rows=["codec"]).to(device).train()
        scenes = groupby(map(vlm.encode, samples), key=lambda row: row["sample"].images[0].name)
        rows = [row for _, scene in scenes for row in pack_questions(list(scene), vlm.backbone.image_token_id)]
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in collate(rows, vlm.pad_id).items()}
        assert "branch" in batch
        vlm(batch)["logits"].square().mean().backward()
        found.append({n: p.grad.cpu() for n, p in vlm.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@torch.no_grad()
def test_greedy_answers_equal_the_cpus() -> None:
    samples, texts = list(grounding_samples("train", 4)), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        vlm = TwinExpertVLM(TinyBackbone(None, **SIZES)).to(device).eval()
        texts.append(vlm.generate(batch_on(device, vlm, samples, for_generation=True), 8))
    assert texts[0] == texts[1]
