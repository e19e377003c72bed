"""`ts-lightning init`: looks at a model and at data, and writes a configuration that trains one on the other."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

# Rates by method: of a small model (below 100 M parameters), and of a large one.
RATES = {"twist": ("2.0e-3", "2.0e-5"), "lora": ("1.0e-3", "1.0e-4"), "full": ("1.0e-3", "1.0e-5")}
SMALL = 100_000_000
HELD_OUT = 10  # one photo of so many is for validation


def init(
    *,
    vlm: Path,
    data: Path,
    out: Path,
    method: Literal["twist", "lora", "full"] = "twist",
    images: Path | None = None,
    codec: str | None = None,
) -> None:
    """Write a run: shards of your data, and a configuration that trains your model on them, a reason beside each value.

        ts-lightning init --vlm checkpoints/Qwen3-VL-8B-Instruct --data my_coco --out runs/mine
        ts-lightning fit -c runs/mine/fit.yaml

    Args:
        vlm: folder of any vlm of docs/backbones.md
        data: a COCO, Roboflow or VOC folder, a COCO, LLaVA or ms-swift JSON, or a folder of shards
        out: a new folder for the run
        method: twist (understanding stays bit by bit), lora, or full
        images: folder of the pictures, where they are not beside the data
        codec: notation of the boxes in the texts of a LLaVA JSON (docs/coordinates.md); words when missing
    """
    if (out / "fit.yaml").exists():
        raise ValueError(f"out: seen {out / 'fit.yaml'}, expected a new folder")
    import torch

    from ts_lightning.models.backbones.hf import HFBackbone

    kind = recognise(data)
    if codec is not None:
        if kind.converter != "llava":
            raise ValueError(f"codec: seen {codec!r} for {kind.reason}, expected it for a LLaVA JSON only")
        kind = replace(kind, options={"codec": codec})
    print(f"data: {kind.reason}")
    counts = shards(kind, data, out, images)
    print(f"shards: {counts['train']} training and {counts['val']} validation questions in {out / 'shards'}")
    large = weights_size(vlm) > 2 * SMALL
    dtype = "bfloat16" if large and torch.cuda.is_available() else "float32"
    backbone = HFBackbone(str(vlm), dtype=dtype)
    longest = longest_answer(backbone, out)
    text = configuration(backbone, vlm, out, method, kind, longest, dtype)
    (out / "fit.yaml").write_text(text)
    print(f"model: {backbone.family}, {len(backbone.layers)} decoder layers, boxes as {backbone.encoder.codec.name}")
    print(f"\n{out / 'fit.yaml'}\n  ts-lightning fit -c {out / 'fit.yaml'}")
    print(f"  ts-lightning ask --ckpt {out} --image FILE QUESTION")


@dataclass(frozen=True)
class Kind:
    """A converter with its options (None: shards as they are), and what was seen."""

    converter: str | None
    options: dict[str, Any]
    reason: str


def recognise(data: Path) -> Kind:
    """The kind of a folder or file, by what is in it; ValueError in one line for none that is known."""
    if data.is_dir():
        if any(data.glob("*.tar")):
            return Kind(None, {}, f"{data}: shards")
        if any(data.glob("*/_annotations.coco.json")):
            return Kind("coco", {"tasks": ("localization", "all")}, f"{data}: Roboflow's COCO export")
        if any(data.glob("annotations/instances_*.json")):
            return Kind("coco", {"tasks": ("localization", "all")}, f"{data}: COCO's folder")
        if any(data.glob("Annotations/*.xml")):
            return Kind("voc", {}, f"{data}: a VOC folder")
        found = sorted(data.glob("*.json")) + sorted(data.glob("*.jsonl"))
        if len(found) == 1:
            return recognise(found[0])
        seen = ", ".join(path.name for path in sorted(data.iterdir())[:5]) or "nothing"
        raise ValueError(f"data: seen {seen} in {data}, expected a COCO, Roboflow or VOC folder, one JSON, or shards")
    try:
        content = data.read_text()
        first = json.loads(content) if data.suffix == ".json" else [json.loads(content.splitlines()[0])]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(
            f"data: {data}: {str(error).splitlines()[0]}, expected a folder, a JSON or JSON lines"
        ) from None
    if isinstance(first, dict) and {"images", "annotations"} <= first.keys():
        return Kind("coco", {"annotations": str(data), "tasks": ("localization", "all")}, f"{data}: a COCO file")
    row = first[0] if isinstance(first, list) and first and isinstance(first[0], dict) else {}
    if "conversations" in row:
        return Kind("llava", {}, f"{data}: LLaVA's conversations")
    if "messages" in row:
        return Kind("ms-swift", {}, f"{data}: ms-swift's messages")
    raise ValueError(f"data: seen {sorted(row or first)[:5]} in {data}, expected images, conversations or messages")


def shards(kind: Kind, data: Path, out: Path, images: Path | None) -> dict[str, int]:
    """Write OUT/shards/train-*.tar and val-*.tar, no photo in both; the questions in each."""
    import zlib

    from ts_lightning.data.manifest import index_shards
    from ts_lightning.data.reader import ShardReader
    from ts_lightning.data.sample import Sample
    from ts_lightning.data.write import remove_shards, write_shards
    from ts_lightning.pipelines.convert import Conversion, convert

    folder = out / "shards"
    if kind.converter is None:
        manifest = index_shards(str(data / "*.tar"))
    else:
        path = None if "annotations" in kind.options else str(data)
        beside = data.parent if data.is_file() else None
        told = Conversion(out=folder, path=path, prefix="all", images=images or beside)
        made = convert(kind.converter, told, kind.options)
        manifest = made.manifest
        print("\n".join(made.dropped.lines()))
    reader, counts = ShardReader(manifest), {"train": 0, "val": 0}

    def part(name: str) -> Iterator[Sample]:
        for i in range(manifest.num_rows):
            sample = reader.read(i)
            photo = sample.images[0].name if sample.images else sample.key
            if (zlib.crc32(photo.encode()) % HELD_OUT == 0) == (name == "val"):
                counts[name] += 1
                yield sample

    for name in counts:
        write_shards(part(name), folder, name)
    if kind.converter is not None:
        remove_shards(folder, "all")
    if not all(counts.values()):
        raise ValueError(
            f"data: seen {counts['train']} training and {counts['val']} validation questions in {data}, "
            "expected some of both: more photos"
        )
    return counts


def longest_answer(backbone: Any, out: Path, most: int = 500) -> int:
    """Tokens of the longest true answer of the training shards, in the model's notation."""
    from ts_lightning.data.manifest import index_shards
    from ts_lightning.data.reader import ShardReader

    manifest = index_shards(str(out / "shards/train-*.tar"))
    reader, longest = ShardReader(manifest), 1
    for i in range(0, manifest.num_rows, max(1, manifest.num_rows // most)):
        row = backbone.encoder(reader.read(i))
        longest = max(longest, int((row["step_ids"] >= 0).sum()))
    return longest


def weights_size(vlm: Path) -> int:
    """Bytes of a folder's safetensors."""
    return sum(path.stat().st_size for path in vlm.glob("*.safetensors"))


def configuration(backbone: Any, vlm: Path, out: Path, method: str, kind: Kind, longest: int, dtype: str) -> str:
    """The text of fit.yaml."""
    import torch

    layers, parameters = len(backbone.layers), sum(p.numel() for p in backbone.model.parameters())
    rate = RATES[method][parameters >= SMALL]
    every = 2 if layers >= 16 else 1
    room = math.ceil(1.25 * longest / 8) * 8
    gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else 8 * 2**30
    weights = parameters * (2 if dtype == "bfloat16" else 4)
    fit = max(memory - 2 * weights, 0) // max(weights // 8, 2**30)
    micro = next(size for size in (8, 4, 2, 1) if size <= max(fit, 1))  # a divisor of the global batch
    precise = "bf16 weights on the GPU" if dtype == "bfloat16" else "no GPU, or a small model"
    notation = "its makers' notation" if backbone.encoder.codec.name != "scout" else "its makers document none"
    small = "small" if parameters < SMALL else "large"
    module, options = {
        "twist": (
            "StepwiseSFT",
            [
                "num_experts: 2                  # the paper's grounding experts",
                "top_k: 1",
                f"every: {every}                        # of {layers} decoder layers: 2 from 16 on, as in the paper",
            ],
        ),
        "lora": (
            "LoRASFT",
            [
                f"rank: {64 if parameters >= SMALL else 8}",
                "lora_alpha: 128",
                f"targets: [{', '.join(linear_names(backbone))}]   # every linear layer of the decoder",
            ],
        ),
        "full": ("SFT", ["train: ['*']                    # every parameter"]),
    }[method]
    kinds = {"twist": "TwinExpertVLM", "lora": "LoRAVLM", "full": "PlainVLM"}
    inner = "\n".join(f"        {line}" for line in options)
    return f"""# Written by ts-lightning init: {method} on {kind.reason}.
#   ts-lightning fit -c {out / "fit.yaml"}
seed_everything: 0
trainer:
  accelerator: auto
  devices: 1
  precision: {"bf16-true" if dtype == "bfloat16" else "32-true"}        # {precise}
  max_steps: 1000
  gradient_clip_val: 1.0          # early steps of fresh experts are large
  log_every_n_steps: 10
  check_val_every_n_epoch: null
  val_check_interval: 250         # in steps
  num_sanity_val_steps: 1         # decode once before training: what is broken shows now
  default_root_dir: {out}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{save_last: true, enable_version_counter: false, every_n_train_steps: 250, save_top_k: 1}}
model:
  class_path: ts_lightning.training.{module}
  init_args:
    vlm:
      class_path: ts_lightning.models.{kinds[method]}
      init_args:
        backbone:
          class_path: ts_lightning.models.backbones.hf.HFBackbone
          init_args:
            pretrained: {vlm}
            dtype: {dtype}
            codec: {backbone.encoder.codec.name}        # {notation}
{inner}
    max_new_tokens: {room}            # the longest of the true answers has {longest} tokens in this notation
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: {rate}, weight_decay: 0.0}}   # {method} on a {small} model ({parameters / 1e6:.1f} M parameters)
    lr_scheduler:
      class_path: ts_lightning.training.WarmupCosine
      init_args: {{warmup_steps: 30, min_factor: 0.05}}
data:
  class_path: ts_lightning.data.ShardDataModule
  init_args:
    train: {{shards: {out}/shards/train-*.tar}}
    val:
      held_out: {{shards: {out}/shards/val-*.tar, max_samples: 200}}   # one photo of {HELD_OUT}, not trained on
    global_batch_size: 16
    micro_batch_size: {micro}           # of {memory / 2**30:.0f} GiB; the result is the same for any
    eval_batch_size: {micro}
    num_workers: {2 if gpu else 0}
"""


def linear_names(backbone: Any) -> list[str]:
    """The names of the linear layers in the decoder's layers."""
    import torch

    modules = backbone.layers.named_modules()
    return sorted({name.rsplit(".", 1)[-1] for name, module in modules if isinstance(module, torch.nn.Linear)})
