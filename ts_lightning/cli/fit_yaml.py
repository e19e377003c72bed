"""The configuration that `init` writes: what fits a model, data and a machine, with a reason beside each value."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.backbones.hf import HFBackbone, config_of
from ts_lightning.models.backbones.hf_families import CODECS
from ts_lightning.models.backbones.hub_layout import SHIPPED
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.experts import expert_form
from ts_lightning.models.low_rank import experts_of
from ts_lightning.reports.memory_plan import Form, Geometry, Load, largest_twist, plan, room_of
from ts_lightning.runs.class_paths import instantiate

# Rates by method: of a small model (below 100 M parameters), and of a large one. GRPO takes a tenth of SFT's.
RATES = {"twist": (2e-3, 2e-5), "lora": (1e-3, 1e-4), "full": (1e-3, 1e-5)}
LOW_RANK_RATE = 5  # a guess: times the rate of full copies; the toy world's best are 1 (rank 64) to 3 (rank 4)
SMALL = 100_000_000
STEPS, BATCH = 1000, 16
BYTES_TRAINED = 16  # a weight, its gradient and AdamW's two states, in fp32
LOW_RANKS = (64, 32, 16, 8)  # of experts, tried one after the other where full copies do not fit
LOOKED_AT = 500  # questions, for the longest answer and the kinds of regions


@dataclass(frozen=True)
class Start:
    """What a run starts from: a plain model's `folder`, or the `spec` of a vlm that was trained before."""

    name: str
    folder: Path | None
    spec: dict[str, Any] | None = None


@dataclass(frozen=True)
class Data:
    """Shards for training and validation, their questions, why these validate, and what the data was."""

    train: str
    val: str
    counts: dict[str, int]
    held_out: str
    kind: str


@dataclass(frozen=True)
class Machine:
    """Bytes that a run may take, and the type of the frozen weights."""

    memory: int
    dtype: str
    gpu: bool


def fit_yaml(start: Start, method: str, data: Data, out: Path, gpu: float | None = None) -> tuple[str, Backbone]:
    """The text of fit.yaml for a card of `gpu` GiB (None: this machine), and the backbone that it was written for."""
    looked_at = samples(data.train)
    backbone, machine, vlm = prepared(start, method, looked_at, gpu)
    longest = max(int((backbone.encoder(sample)["step_ids"] >= 0).sum()) for sample in looked_at)
    room = math.ceil(1.25 * longest / 8) * 8
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    size = "a small" if parameters < SMALL else "a large"
    grpo = method == "grpo"
    sft = method if not grpo else "lora" if start.spec is None else sft_of(start)
    low_rank = yaml.safe_load(vlm)["init_args"].get("expert_rank") is not None  # a trained vlm names it: null
    rate = RATES[sft][parameters >= SMALL] / (10 if grpo else 1) * (LOW_RANK_RATE if low_rank else 1)
    bf16 = machine.dtype == "bfloat16"
    precision = ("bf16-mixed", "what trains is fp32") if bf16 else ("32-true", "no GPU, or a small model")
    logged = ("1", "a step is dear") if grpo else ("10", "a curve of 100 points")
    of_batch = "prompts of 8 completions" if grpo else "of small data rather more steps than larger ones"
    workers = ("2", "pictures are decoded beside the GPU") if machine.gpu else ("0", "the cores are the trainer's")
    answers = f"the longest of the true answers has {longest} tokens in this notation"
    rated = f"{method} on {size} model ({parameters / 1e6:.1f} M parameters)"
    text = f"""# Written by ts-lightning init: {method} on {data.kind}.
#   ts-lightning fit -c {out / "fit.yaml"}
seed_everything: 0                # the same numbers again
trainer:
  accelerator: auto               # a GPU where there is one
  devices: 1                      # more of them: -c trainer/ddp.yaml
  precision: {because(*precision)}
  max_steps: {because(f"{STEPS}", passes(data, 2 if grpo else 1))}
  gradient_clip_val: 1.0          # early steps of fresh weights are large
  log_every_n_steps: {because(*logged)}
  check_val_every_n_epoch: null   # steps count, not passes
  val_check_interval: 250         # four times in all
  num_sanity_val_steps: 1         # decode once before training: what is broken shows now
  default_root_dir: {out}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint   # a run that was stopped goes on from the last one
      init_args: {{save_last: true, enable_version_counter: false, every_n_train_steps: 250, save_top_k: 1}}
{indented(rollouts(room), 4) if grpo else ""}model:
  class_path: ts_lightning.training.{module_of(method)}
  init_args:
    vlm:
{indented(vlm, 6)}    max_new_tokens: {because(f"{room}", answers)}
{indented(GRPO, 4) if grpo else ""}    optimizer:
      class_path: torch.optim.AdamW
      init_args: {{lr: {rate:.1e}, weight_decay: 0.0}}   # {rated}
    lr_scheduler:
      class_path: ts_lightning.training.WarmupCosine
      init_args: {{warmup_steps: 30, min_factor: 0.05}}   # AdamW's second moment needs some steps
data:
  class_path: ts_lightning.data.ShardDataModule
  init_args:
    train: {{shards: {data.train}}}
    val:
      held_out: {{shards: {data.val}, max_samples: 200}}   # {data.held_out}; 200 are enough for a curve
    global_batch_size: {because(f"{BATCH}", of_batch)}
{indented(batches(backbone, machine), 4)}    num_workers: {because(*workers)}
"""
    return text, backbone


def because(value: str, why: str) -> str:
    """A value with its reason."""
    return f"{value:<14}# {why}"


def samples(pattern: str) -> list[Any]:
    """Some questions of shards, from all over them."""
    manifest = index_shards(pattern)
    reader = ShardReader(manifest)
    return [reader.read(i) for i in range(0, manifest.num_rows, max(1, manifest.num_rows // LOOKED_AT))]


def prepared(start: Start, method: str, looked_at: list[Any], gpu: float | None) -> tuple[Backbone, Machine, str]:
    """The backbone, the machine that it runs on, and the vlm's part of the configuration."""
    if start.spec is not None:
        backbone = instantiate(Backbone, **start.spec["init_args"]["backbone"])
        dtype = "bfloat16" if backbone.embedding.weight.dtype == torch.bfloat16 else "float32"
        text = yaml.safe_dump(start.spec, sort_keys=False, default_flow_style=False)
        return backbone, machine_for(dtype, gpu), f"# as {start.name} was trained\n{text}"
    folder = Path(str(start.folder))
    large = sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 2 * SMALL
    machine = machine_for("bfloat16" if large and (gpu or torch.cuda.is_available()) else "float32", gpu)
    if folder.resolve() == SHIPPED.resolve():
        return tiny(method, machine, looked_at)
    codec, why = notation(config_of(folder).model_type, looked_at)
    backbone = HFBackbone(str(folder), dtype=machine.dtype, codec=codec)
    lines, kind = options(backbone, method, machine)
    exact = "half the memory; what trains is fp32" if machine.dtype == "bfloat16" else "exact"
    text = f"""class_path: ts_lightning.models.{kind}
init_args:
  backbone:
    class_path: ts_lightning.models.backbones.hf.HFBackbone
    init_args:
      pretrained: {folder}
      dtype: {because(machine.dtype, exact)}
      codec: {because(codec, why)}
"""
    return backbone, machine, text + indented("\n".join(lines), 2)


def tiny(method: str, machine: Machine, looked_at: list[Any]) -> tuple[Backbone, Machine, str]:
    """The same of the tiny base, which no other class reads, and which has never said a number as a coordinate."""
    codec, why = notation("tiny", looked_at)
    backbone = TinyBackbone(codec=codec)
    lines, kind = options(backbone, method, machine)
    if method != "full":
        lines.append("train_token_rows: [codec]   # the tiny base never says numbers as coordinates; real ones can")
    text = f"""class_path: ts_lightning.models.{kind}
init_args:
  backbone:
    class_path: ts_lightning.models.backbones.tiny.TinyBackbone
    init_args:
      pretrained: shipped
      codec: {because(codec, why)}
"""
    return backbone, machine, text + indented("\n".join(lines), 2)


def machine_for(dtype: str, gpu: float | None = None) -> Machine:
    """The memory of a card of `gpu` GiB, or of the GPU that is here, or the machine's."""
    if gpu is not None:
        return Machine(int(gpu * 2**30), dtype, True)
    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_properties(0).total_memory, dtype, True)
    return Machine(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), dtype, False)


def notation(family: str, looked_at: list[Any]) -> tuple[str, str]:
    """The family's own notation and why, or one that can write what the questions hold."""
    own = CODECS.get(family, "scout")
    regions = [region for sample in looked_at for region in sample.regions]
    kinds = {"polygon" if r.polygon else "click" if r.points else "box" for r in regions}
    if kinds <= {*get_codec(own).kinds}:
        return own, "its makers' notation" if family in CODECS else "its makers document none"
    return "chatspot", f"the data has {' and '.join(sorted(kinds))} regions, which {own} can't write"


def options(backbone: Backbone, method: str, machine: Machine) -> tuple[list[str], str]:
    """The lines of a fresh vlm's options, and its class."""
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    saving = ["activation_checkpointing: true   # layers are computed again in backward: memory for time"]
    saving = saving if parameters >= SMALL else []
    if method in ("lora", "grpo"):
        rank = 64 if parameters >= SMALL else 8
        return [
            f"rank: {rank}                 # {'some hundred million numbers' if rank == 64 else 'a small model'}",
            f"lora_alpha: {2 * rank}          # twice the rank",
            "targets: all-linear      # every linear layer of the decoder",
            *saving,
        ], "LoRAVLM"
    if method == "full":
        needs = parameters * BYTES_TRAINED / 2**30
        more = " more than there is: -c trainer/fsdp.yaml" if needs * 2**30 > machine.memory else ""
        return [
            f"train: ['*']             # every parameter: {needs:.1f} GiB with AdamW's states{more}",
            *saving,
        ], "PlainVLM"
    layers = len(backbone.layers)
    every = 2 if layers >= 16 else 1
    geometry = Geometry.of(SHIPPED if isinstance(backbone, TinyBackbone) else backbone.init_args["pretrained"])
    itemsize = 2 if machine.dtype == "bfloat16" else 4
    micro = micro_batch(backbone, machine)
    load = Load(eval_batch=micro, picture_tokens=geometry.picture_tokens(), every=every, itemsize=itemsize)
    twins = [expert for slot in geometry.slots[::every] for expert in experts_of(slot)]
    odd = next((type(expert).__name__ for expert in twins if not expert_form(expert, plain=False)), None)
    found = largest_twist(geometry, load, room_of(machine.memory / 2**30), () if odd else LOW_RANKS)
    form = found.form if found else Form("twist", LOW_RANKS[-1], "nf4")
    full = plan(geometry, Form("twist"), load).peak / 2**30
    if odd and found is None:
        seen = f"twist for experts of {odd}, which have no form of low rank"
        expected = "expected lora, or a larger card (--gpu)"
        raise ValueError(f"method: seen {seen}; full copies need {full:.1f} GiB, {expected}")
    needs = f"full copies would need {full:.0f} GiB: ts-lightning plan"
    codes = "more than the base in bf16 leaves room for" if found else "not even so does it fit, says ts-lightning plan"
    return [
        "num_experts: 2           # the paper's grounding experts",
        "top_k: 1                 # one of them a token, as the paper's counts suggest",
        f"every: {every}                 # of {layers} decoder layers: 2 from 16 on, as in the paper",
        *([f"expert_rank: {form.rank:<11}# {needs}"] if form.rank else []),
        *([f"quantization: {form.quantization:<10}# {codes}"] if form.rank and form.quantization else []),
        *saving,
    ], "TwinExpertVLM"


def batches(backbone: Backbone, machine: Machine) -> str:
    """The lines of the micro-batches."""
    micro = micro_batch(backbone, machine)
    why = f"of {machine.memory / 2**30:.0f} GiB; the result is the same for any"
    return f"micro_batch_size: {micro}           # {why}\neval_batch_size: {micro}            # as above\n"


def micro_batch(backbone: Backbone, machine: Machine) -> int:
    """The rows that memory has room for: a divisor of the global batch."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in backbone.model.parameters())
    rows = max(machine.memory - 2 * weights, 0) // max(weights // 8, 2**30)
    return next(size for size in (8, 4, 2, 1) if size <= max(rows, 1))


def passes(data: Data, updates: int) -> str:
    """How often `STEPS` steps see the data, with so many of them on a batch."""
    return f"{STEPS * BATCH / updates / data.counts['train']:.1f} passes over {data.counts['train']} questions"


def sft_of(start: Start) -> str:
    """The method that trained what GRPO starts from."""
    name = str(start.spec and start.spec["class_path"]).rpartition(".")[2]
    return {"TwinExpertVLM": "twist", "LoRAVLM": "lora"}.get(name, "full")


def module_of(method: str) -> str:
    """The LightningModule of a method."""
    return {"twist": "StepwiseSFT", "lora": "LoRASFT", "full": "SFT", "grpo": "GRPO"}[method]


def rollouts(room: int) -> str:
    """The callback that draws completions and rewards them."""
    return f"""- class_path: ts_lightning.rl.RolloutCallback
  init_args:
    num_generations: 8        # completions of a prompt, which are compared with each other
    max_new_tokens: {room}
    stop_after: null          # answers have no tags; they end at the end mark
    table_every: 50           # prompts, completions and rewards to look at
    rewards:
      f1: ts_lightning.rl.f1_reward           # several objects, and questions about what is not there, too
      strict: ts_lightning.rl.strict_reward   # boxes in the notation's exact form, an answer that ends
    reward_options: {{f1: {{form: giou}}}}      # boxes that miss are told how far
"""


GRPO = """algorithm:
  class_path: ts_lightning.losses.DAPO   # every token alike, unlikely ones may grow further
  init_args: {advantage_eps: 0.1}        # boxes that differ by a pixel shall weigh little
num_iterations: 2         # updates of a rollout: drawing it is what costs
kl_coeff: 0.0             # as in DAPO: no reference
"""


def indented(text: str, by: int) -> str:
    """The lines of a text, moved to the right; with an end of line."""
    return "".join(" " * by + line + "\n" for line in text.splitlines())
