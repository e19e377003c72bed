"""The papers' models at full geometry with random weights on a CUDA device: 20 training steps, 256 new tokens.

Says so and stops where there is no CUDA device.
"""

import io
import time
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from tools.bench.geometry import MODELS, backbone
from tools.bench.harness import report
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.generate import decode, greedy, prefill

STEPS, NEW_TOKENS, ROWS = 20, 256, 4


def main(
    rounds: int,
    model: str = MODELS[0],
    device: str = "cuda",
    rank: int | None = None,
    quantization: str | None = None,
) -> int:
    """Print seconds a step, tokens a second, peak memory as one JSON line; `rounds` is not used.

    With `rank` and `quantization` the experts are of low rank and the base is quantised.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return report("full_size", True, model=model, skipped="seen no CUDA device, expected one: nothing was run")
    with torch.device(device):
        vlm = TwinExpertVLM(backbone(model), expert_rank=rank, quantization=quantization, activation_checkpointing=True)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # what trains and AdamW's states are fp32
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=2e-5)
    vlm.train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what the making of the model took is not the step's
    seconds = [train_step(vlm, optimizer, device) for _ in range(STEPS)]
    trained = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    optimizer.zero_grad(set_to_none=True)
    vlm.eval()
    rate = generate(vlm, device)
    figures: dict[str, Any] = {
        "model": model,
        "rows": ROWS,
        "rank": rank,
        "quantization": quantization,
        "step_s": round(sorted(seconds[3:])[len(seconds[3:]) // 2], 3),
        "peak_gib": round(trained / 2**30, 1),
        "new_tokens_per_s": round(rate, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }
    return report("full_size", True, **figures)


def train_step(vlm: TwinExpertVLM, optimizer: torch.optim.Optimizer, device: str) -> float:
    """Seconds of one step on `ROWS` records."""
    batch = on(device, collate([vlm.encode(record(i)) for i in range(ROWS)], vlm.pad_id))
    _wait()
    began = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
        output = vlm(batch)
        loss = F.cross_entropy(output["logits"].float(), output["targets"])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _wait()
    return time.perf_counter() - began


@torch.no_grad()
def generate(vlm: TwinExpertVLM, device: str) -> float:
    """Tokens a second of `ROWS` greedy answers of `NEW_TOKENS` tokens, the prompt included."""
    batch = on(device, collate([vlm.encode(record(i), True) for i in range(ROWS)], vlm.pad_id, "left"))
    _wait()
    began = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
        count = sum(1 for _ in decode(prefill(vlm, batch), greedy, {-1}, NEW_TOKENS))
    _wait()
    return ROWS * count / (time.perf_counter() - began)


def record(number: int) -> Sample:
    """A localization record about a picture of noise, 640 x 480."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (480, 640, 3), dtype=torch.uint8, generator=generator)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG")
    return Sample(
        id=str(number),
        key=str(number),
        task="grounding",
        images=[SampleImage("noise.jpg", 640, 480)],
        turns=[Turn("user", "<image>\nWhere is the dog? Answer with a box."), Turn("assistant", "{region:0}")],
        regions=[SampleRegion(box=(0.1, 0.2, 0.5, 0.6))],
        answer=Answer(regions=[0]),
        image_bytes=[file.getvalue()],
    )


def on(device: str, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
