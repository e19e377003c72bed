"""What a training step needs at full geometry, by arithmetic: python -m tools.bench.performance_model

Eight questions about a picture, separate and behind it, for the papers' models; `models.flops` counts, and a test holds
it against torch's own count on small models. Weights are on the meta device: nothing is allocated, nothing is timed.
"""

import sys
from typing import NamedTuple

import torch

from tools.bench.geometry import MODELS, backbone
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.flops import StepFlops, step_flops

PEAK, BANDWIDTH = 990e12, 4.8e12  # an H200's data sheet: dense bf16 products a second, bytes a second
QUESTIONS, PICTURE, TEXT, ANSWER = 8, 576, 100, 30  # tokens: of the picture, of a question, of them its answer


class Rows(NamedTuple):
    """What eight questions about one picture are to a model."""

    tokens: int
    pairs: int
    answers: int = QUESTIONS * ANSWER


def causal(length: int) -> int:
    """Pairs of a token and one that it sees."""
    return length * (length + 1) // 2


SEPARATE = Rows(QUESTIONS * (PICTURE + TEXT), QUESTIONS * causal(PICTURE + TEXT))
PACKED = Rows(PICTURE + QUESTIONS * TEXT, causal(PICTURE) + QUESTIONS * (causal(TEXT) + TEXT * PICTURE))
DENSE_PACKED = PACKED._replace(pairs=PACKED.tokens**2)  # what a dense mask computes


def row(model: str) -> str:
    """A line of the table: GFLOP a token, then TFLOP of the eight questions, then seconds at the device's peak."""
    with torch.device("meta"):
        vlm = TwinExpertVLM(backbone(model), num_experts=2, top_k=1)
    flops: StepFlops = step_flops(vlm)
    separate, packed, dense = (flops.of_step(*rows) / 1e12 for rows in (SEPARATE, PACKED, DENSE_PACKED))
    share = flops.pair * PACKED.pairs / 1e12 / packed
    trained = sum(p.numel() for p in vlm.parameters() if p.requires_grad)
    adamw = 28 * trained / BANDWIDTH * 1e3  # fp32: reads weight, gradient, two moments; writes all but the gradient
    cells = (
        f"{flops.token / 1e9:.1f}",
        f"{separate:.1f}",
        f"{packed:.1f}",
        f"{packed / separate:.2f}",
        f"{100 * share:.1f}%",
        f"{dense - packed:.1f}",
        f"{packed * 1e15 / PEAK:.0f}",
        f"{trained / 1e9:.2f}",
        f"{adamw:.0f}",
    )
    return f"| {model} | {' | '.join(cells)} |"


def main() -> int:
    print(
        "| model | GFLOP a token | separate, TFLOP | packed, TFLOP | ratio | attention of it | a dense mask adds |",
        end="",
    )
    print(" ms at the peak | trained, B | AdamW, ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        print(row(model), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
