"""What `ts-lightning plan` counts, against the peak of two training steps in a process of its own, on small models.

Resident memory on a CPU (every tensor of 64 KiB gives its pages back), allocated memory on a CUDA device.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from ctypes import CDLL
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from tools.bench.full_size import on, record
from tools.bench.geometry import CLIP_L
from tools.bench.harness import report
from ts_lightning.data.collate import collate
from ts_lightning.data.sample import Turn
from ts_lightning.models import VLM, LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.llava import LlavaBackbone
from ts_lightning.models.backbones.moe_layout import moe_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.backbones.qwen_vl import QwenVLBackbone
from ts_lightning.reports.memory_plan import Form, Geometry, Load, plan

TOWER = CLIP_L | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT: dict[str, Any] = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
                        "num_attention_heads": 12}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "llava", "vision_config": TOWER | {"model_type": "clip_vision_model"},
              "text_config": TEXT | {"model_type": "llama"}},
    "qwen2_5_vl": {"model_type": "qwen2_5_vl",
                   "text_config": TEXT | {"num_key_value_heads": 4, "rope_parameters": {
                       "rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}},
                   "vision_config": {"depth": 4, "hidden_size": 256, "intermediate_size": 684, "num_heads": 4,
                                     "out_hidden_size": 768, "fullatt_block_indexes": [3]}},
    "moe_llava": TEXT | {"model_type": "moe_llava_phi", "partial_rotary_factor": 0.5, "vision_config": TOWER,
                         "moe": moe_config(list(range(0, 8, 2)), 4, top_k=2)},
}  # fmt: skip
FORMS = (Form("twist"), Form("twist", 16), Form("lora", 16), Form("full"))
WORDS = 400  # of a question


def main(rounds: int, models: list[str] | None = None, device: str = "cpu") -> int:
    """Print planned and measured MiB of every form as one JSON line; `rounds` is not used."""
    cases = {
        f"{name}, {form.name}": against(CONFIGS[name], form, device) for name in models or CONFIGS for form in FORMS
    }
    worst = max(abs(case["ratio"] - 1) for case in cases.values())
    return report("memory", worst <= 0.1, device=device, worst_error=round(worst, 3), cases=cases)


def against(config: Mapping[str, Any], form: Form, device: str = "cpu") -> dict[str, float]:
    """MiB that were planned and measured, and planned / measured."""
    words = [sys.executable, "-m", "tools.bench.memory", json.dumps(config), form.method, str(form.rank or 0), device]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"memory: {done.stderr.splitlines()[-1]}")
    seen = json.loads(done.stdout.splitlines()[-1])
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        geometry = Geometry.of(folder)
    load = Load(
        text=seen["tokens"] - seen["pictures"], answer=seen["answer"], picture_tokens=seen["pictures"],
        itemsize=4 if device == "cpu" else 2, on_cpu=device == "cpu",
    )  # fmt: skip
    planned, measured = plan(geometry, form, load), seen["bytes"] / 2**20
    mib = {name: getattr(planned, name) / 2**20 for name in ("weights", "gradients", "optimizer", "activations")}
    total = sum(mib.values())
    figures = {**mib, "planned": total, "measured": measured, "weights_measured": seen["weights"] / 2**20}
    return {name: round(value, 1) for name, value in figures.items()} | {"ratio": round(total / measured, 3)}


def measured(config: Mapping[str, Any], form: Form, device: str) -> dict[str, int]:
    """Bytes at the peak of two steps beside what was there before the model, and the tokens of a step."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    warm = {**config, **(small if "moe" in config else {})}
    if "moe" in config:
        warm["moe"] = moe_config([0], 4, top_k=2)
    else:
        warm["text_config"] = config["text_config"] | small | {"num_key_value_heads": 1}
    if "out_hidden_size" in config["vision_config"]:
        warm["vision_config"] = config["vision_config"] | {"out_hidden_size": 64}
    step(vlm_of(warm, form, device), device)  # what libraries load once is not the model's
    gc.collect()
    CDLL(None).malloc_trim(0)  # nor is what it has given back
    before = _now(device)
    vlm = vlm_of(config, form, device)
    weights = _now(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return {**step(vlm, device), "bytes": _peak(device) - before, "weights": weights}


def vlm_of(config: Mapping[str, Any], form: Form, device: str) -> VLM:
    kinds: dict[str, Any] = {
        "llava": LlavaBackbone, "qwen2_5_vl": QwenVLBackbone, "moe_llava_phi": MoELlavaBackbone
    }  # fmt: skip
    dtype = "float32" if device == "cpu" else "bfloat16"
    backbone = kinds[config["model_type"]](config=config, dtype=dtype)
    vlm: VLM
    if form.method == "twist":
        vlm = TwinExpertVLM(backbone, expert_rank=form.rank, activation_checkpointing=True)
    elif form.method == "lora":
        names = {name.rsplit(".", 1)[-1] for name, m in backbone.layers.named_modules() if type(m) is torch.nn.Linear}
        vlm = LoRAVLM(backbone, form.rank or 1, targets=sorted(names - {"router"}), activation_checkpointing=True)
    else:
        vlm = PlainVLM(backbone, activation_checkpointing=True)
    for parameter in vlm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return vlm.to(device).train()


def step(vlm: VLM, device: str) -> dict[str, int]:
    """Two optimizer steps on one row; its tokens, those of its picture, and those that have a loss."""
    sample = record(0)
    words = " ".join(["red", "box"] * (WORDS // 2))
    sample.turns = [Turn("user", f"<image>\n{words}"), Turn("assistant", words[: len(words) // 4])]
    batch = on(device, collate([vlm.encode(sample)], vlm.pad_id))
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            output = vlm(batch)
            loss = F.cross_entropy(output["logits"].float(), output["targets"])
        del output
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pictures = (batch["input_ids"] == vlm.backbone.image_token_id).sum()
    return {
        "tokens": batch["input_ids"].numel(),
        "pictures": int(pictures),
        "answer": int((batch["step_ids"] >= 0).sum()),
    }


def _now(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _field("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _field("VmHWM")


def _field(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields[name].split()[0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, method, rank, where = sys.argv[1:]
    print(json.dumps(measured(json.loads(given), Form(method, int(rank) or None), where)))
