"""A GRPO step of the papers' models at full geometry with random weights in bf16 on a CUDA device.

The prompt read once a group against repeated prompts, and both parts against floors that the same run measures. Where
there is no CUDA device it says so, and gives the floors by arithmetic.
Legend: N completions, S steps, T prompt positions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tools.bench.floors import Probes, decode_bytes, update_flops
from tools.bench.geometry import MODELS, backbone
from tools.bench.grpo_case import Case, prompt_batch
from tools.bench.harness import interleave, ratio, report
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.generate import banned_tokens

GROUP, PROMPT, COMPLETION = 8, 600, 60
TOLERANCE = {  # 32 layers, H = 64, bf16 have 0.011 and 0.051, and 0.063 and 0.12 when completions see each other
    torch.float32: {"log_probs": 1e-4, "gradients": 1e-4},
    torch.bfloat16: {"log_probs": 0.05, "gradients": 0.2},
}
ASSUMED_FLOPS, ASSUMED_BANDWIDTH = 790e12, 4.3e12  # an H200's products in bf16, and bytes a second
PROBES: dict[str, Any] = {}  # sizes of the floors' probes other than their defaults


def make_case(model: str, device: str) -> Case:
    """A group behind a text prompt of random tokens; the end mark is a token that is never drawn."""
    with torch.device(device):
        vlm = TwinExpertVLM(backbone(model)).eval()
    vlm.tokenizer.eos_token = vlm.backbone.encoder.image_token
    allowed = torch.ones(len(vlm.backbone.embedding.weight))
    allowed[banned_tokens(vlm)] = 0
    ids = allowed.multinomial(PROMPT + GROUP * COMPLETION, True, generator=torch.Generator().manual_seed(0)).to(device)
    pixels = torch.zeros(0, 3, 1, 1, dtype=torch.uint8, device=device)
    return Case(vlm, prompt_batch(ids[:PROMPT], pixels), ids[PROMPT:].view(GROUP, COMPLETION))


def peak_gib(case: Case, shared: bool, device: str) -> float | None:
    """Of an update, weights and gradients included."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    case.update(shared)
    return round(torch.cuda.max_memory_allocated() / 2**30, 1)


def drawn_error(case: Case, cuda_graph: bool) -> float:
    """Relative error of the log-probabilities of drawing against those of the update, about their mean."""
    drawn = case.roll_out(True, COMPLETION, cuda_graph=cuda_graph)
    with torch.no_grad():
        logp_NS = case.score(True, drawn.tokens[0])
    return float((drawn.logp_NS - logp_NS).norm() / (logp_NS - logp_NS.mean()).norm())


def floors(model: str, flops: float = ASSUMED_FLOPS, bandwidth: float = ASSUMED_BANDWIDTH) -> dict[str, float]:
    """By arithmetic alone, without weights: an update's products and a token's bytes, and the milliseconds of each."""
    with torch.device("meta"):
        vlm = TwinExpertVLM(backbone(model))
    update, token = update_flops(vlm, PROMPT, GROUP, COMPLETION), decode_bytes(vlm)
    milliseconds = {"update_ms": 1e3 * update / flops, "token_ms": 1e3 * token / bandwidth}
    figures = {"update_tflop": update / 1e12, "decode_gb": token / 1e9, **milliseconds}
    return {name: round(value, 2) for name, value in figures.items()}


def main(rounds: int, model: str = MODELS[0], device: str = "cuda") -> int:
    """Compare both forms, then time update, rollout and the floors' probes; the ratios are ours / the other."""
    if device == "cuda" and not torch.cuda.is_available():
        skipped = "seen no CUDA device, expected one: nothing was run"
        return report("grpo_full_size", True, model=model, skipped=skipped, floors=floors(model))
    case = make_case(model, device)
    dtype = case.vlm.backbone.embedding.weight.dtype
    errors, drawn = case.errors(), {"drawn": drawn_error(case, False)}
    pairs = [("update", "update_repeated"), ("rollout", "rollout_repeated")]
    further: dict[str, Callable[[], Any]] = {}
    if device == "cuda":  # decoding steps that are captured once
        further["rollout_graph"] = partial(case.roll_out, True, COMPLETION, cuda_graph=True)
        drawn["drawn_graph"] = drawn_error(case, True)
        pairs.append(("rollout_graph", "rollout"))
    right = max(drawn.values()) <= TOLERANCE[dtype]["log_probs"]
    errors |= drawn
    if not (right and all(errors[name] <= limit for name, limit in TOLERANCE[dtype].items())):
        return report("grpo_full_size", False, model=model, ratios={}, floor_ratio=None, relative_errors=errors)
    peaks = {name: peak_gib(case, shared, device) for name, shared in (("ours", True), ("repeated", False))}
    case.vlm.zero_grad()
    probes = Probes(device, dtype, **PROBES)
    seconds = interleave(
        {
            "update": partial(case.update, True),
            "update_repeated": partial(case.update, False),
            "rollout": partial(case.roll_out, True, COMPLETION),
            "rollout_repeated": partial(case.roll_out, False, COMPLETION),
            **further,
            "first_token": partial(case.roll_out, True, 1),
            "copy": probes.copy,
            "multiply": probes.multiply,
        },
        rounds,
    )
    flops, read = update_flops(case.vlm, PROMPT, GROUP, COMPLETION), decode_bytes(case.vlm)
    seconds["update_floor"] = [s * flops / probes.flops for s in seconds["multiply"]]
    seconds["token_floor"] = [s * read / probes.moved for s in seconds["copy"]]
    both = zip(seconds["rollout"], seconds["first_token"], strict=True)
    seconds["token"] = [(whole - first) / (COMPLETION - 1) for whole, first in both]
    return report(
        "grpo_full_size",
        True,
        model=model,
        ratios={f"{part}/{peer.removeprefix(part + '_')}": ratio(seconds, part, peer) for part, peer in pairs},
        floor_ratio={part: ratio(seconds, part, f"{part}_floor") for part in ("update", "token")},
        seconds={name: float(f"{sorted(values)[len(values) // 2]:.4g}") for name, values in seconds.items()},
        peak_gib=peaks,
        decode_gb=round(read / 1e9, 3),
        update_tflop=round(flops / 1e12, 3),
        copy_gb_per_s=round(probes.moved / min(seconds["copy"]) / 1e9, 1),
        matmul_tflop_per_s=round(probes.flops / min(seconds["multiply"]) / 1e12, 2),
        relative_errors=errors,
        dtype=str(dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name() if device == "cuda" else device,
    )
