"""Every backbone on a CUDA device; skipped where there is none.

Bitwise: the same modules on the same rows.
"""

from typing import Any

import pytest
import torch

from tests.unit.models.test_backbones import MAKERS, SAMPLES, batch_of, sample
from ts_lightning.models import PlainVLM, TwinExpertVLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(vlm: Any, samples: list) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch_of(vlm, samples).items()}


@pytest.mark.parametrize("name", MAKERS)
def test_understanding_is_bitwise_the_base_after_a_step_in_bf16(name: str) -> None:
    asked = [SAMPLES[1], sample("understanding", (64, 64), 5)]
    base, vlm = PlainVLM(MAKERS[name](), train=["*"]).cuda().eval(), TwinExpertVLM(MAKERS[name]()).cuda()
    with torch.no_grad():
        before = base(on_cuda(base, asked))["logits"]
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-2)
    vlm.train()
    with torch.autocast("cuda", torch.bfloat16):
        out = vlm(on_cuda(vlm, SAMPLES))
        loss = torch.nn.functional.cross_entropy(out["logits"].float(), out["targets"])
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    with torch.no_grad():
        assert torch.equal(vlm.eval()(on_cuda(vlm, asked))["logits"], before)
