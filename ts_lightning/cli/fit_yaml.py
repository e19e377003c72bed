"""The configuration that `init` writes: what fits a model, data and a machine, with a reason beside each value."""

import math
import os
import sys
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ts_lightning.data.manifest import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.backbones.hf import HFBackbone, config_of
from ts_lightning.models.backbones.hf_families import CODECS
from ts_lightning.models.backbones.hub_layout import SHIPPED, random_model
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.models.encode import Encoder
from ts_lightning.models.experts import expert_form
from ts_lightning.models.low_rank import experts_of
from ts_lightning.reports.memory_plan import QUANTISED, Form, Geometry, GiB, Load, largest_twist, plan, room_of
from ts_lightning.runs.class_paths import instantiate

# Rates by method: of a small model (below 100 M parameters), and of a large one. GRPO takes a tenth of SFT's.
RATES = {"twist": (2e-3, 2e-5), "lora": (1e-3, 1e-4), "full": (1e-3, 1e-5)}
LOW_RANK_RATE = 5  # a guess: times the rate of full copies; the toy world's best are 1 (rank 64) to 3 (rank 4)
SMALL = 100_000_000
STEPS, BATCH, GROUP = 1000, 16, 8  # GROUP: completions of a prompt
BYTES_TRAINED = 16  # a weight, its gradient and AdamW's two states, in fp32
LOW_RANKS = (64, 32, 16, 8)  # of experts, tried one after the other where full copies do not fit
LARGER = "a larger machine, or --gpu GiB of the card that it will run on"
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

    @property
    def room(self) -> float:
        """Bytes that tensors may take."""
        return room_of(self.memory / GiB)


class Row(NamedTuple):
    """Tokens of a question: all, those before its last answer, of pictures, of all answers and of the longest one.

    Of several questions the most of each, which may be of different ones.
    """

    tokens: int
    prompt: int
    of_pictures: int
    answers: int
    answer: int

    @property
    def new_tokens(self) -> int:
        """The longest answer, and some more."""
        return math.ceil(1.25 * self.answer / 8) * 8

    def needs(self, new_tokens: int) -> int:
        """Tokens of what is longer: the row with its own answers, or its prompt with so many new tokens."""
        return max(self.tokens, self.prompt + new_tokens)


@dataclass(frozen=True)
class Setup:
    """What is trained: the backbone, the vlm's part of the configuration, the form of tuning and what a step reads."""

    backbone: Backbone
    machine: Machine
    vlm: str
    longest: Row
    geometry: Geometry
    form: Form
    load: Load

    def fits(self, micro_batch: int, eval_batch: int) -> bool:
        """Whether so many rows at once do."""
        load = replace(self.load, micro_batch=micro_batch, eval_batch=eval_batch)
        return plan(self.geometry, self.form, load).peak <= self.machine.room

    @property
    def micro_batch(self) -> int:
        """Rows of a step, and of an evaluation: a divisor of the global batch."""
        return next((rows for rows in (8, 4, 2) if self.fits(rows, rows)), 1)

    @property
    def rollout_batch(self) -> int:
        """Prompts that are answered at once, in whole micro-batches."""
        micro = self.micro_batch
        return next((rows for rows in (16, 8, 4, 2) if rows > micro and self.fits(micro, rows)), micro)


def fit_yaml(start: Start, method: str, data: Data, out: Path, gpu: float | None = None) -> tuple[str, Backbone]:
    """The text of fit.yaml for a card of `gpu` GiB (None: this machine), and the backbone that it was written for."""
    looked_at = samples(data.train)
    setup = prepared(start, method, looked_at, gpu)
    backbone, machine, vlm = setup.backbone, setup.machine, setup.vlm
    room = setup.longest.new_tokens
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    size = "a small" if parameters < SMALL else "a large"
    grpo = method == "grpo"
    sft = method if not grpo else "lora" if start.spec is None else sft_of(start)
    low_rank = setup.form.method == "twist" and setup.form.rank is not None
    rate = RATES[sft][parameters >= SMALL] / (10 if grpo else 1) * (LOW_RANK_RATE if low_rank else 1)
    bf16 = machine.dtype == "bfloat16"
    precision = ("bf16-mixed", "what trains is fp32") if bf16 else ("32-true", "no GPU, or a small model")
    logged = ("1", "a step is dear") if grpo else ("10", "a curve of 100 points")
    of_batch = f"prompts of {GROUP} completions" if grpo else "of small data rather more steps than larger ones"
    workers = ("2", "pictures are decoded beside the GPU") if machine.gpu else ("0", "the cores are the trainer's")
    answers = f"the longest of the true answers has {setup.longest.answer} tokens in this notation"
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
{indented(rollouts(setup), 4) if grpo else ""}model:
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
{indented(batches(setup), 4)}    num_workers: {because(*workers)}
"""
    return text, backbone


def because(value: str, why: str) -> str:
    """A value with its reason."""
    return f"{value:<14}# {why}"


def samples(pattern: str) -> list[Any]:
    """Some questions of shards, from all over them."""
    reader = ShardReader(index_shards(pattern))
    return [reader.read(i) for i in range(0, len(reader), max(1, len(reader) // LOOKED_AT))]


def prepared(start: Start, method: str, looked_at: list[Any], gpu: float | None) -> Setup:
    """What is trained, and what fits of it."""
    grpo = method == "grpo"
    if start.spec is not None:
        trained: Backbone = instantiate(Backbone, **start.spec["init_args"]["backbone"])
        dtype = "bfloat16" if trained.embedding.weight.dtype == torch.bfloat16 else "float32"
        text = yaml.safe_dump(start.spec, sort_keys=False, default_flow_style=False)
        machine = machine_for(dtype, gpu)
        longest = most_of(rows_of(trained.encoder, trained.image_token_id, looked_at))
        given = start.spec["init_args"]
        load = load_of(trained, longest, machine, grpo)
        load = replace(load, every=given.get("every", 1), num_experts=given.get("num_experts", 1))
        vlm = f"# as {start.name} was trained\n{text}"
        return Setup(trained, machine, vlm, longest, geometry_of(trained), form_of(start), load)
    folder = Path(str(start.folder))
    large = sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 2 * SMALL
    machine = machine_for("bfloat16" if large and (gpu or torch.cuda.is_available()) else "float32", gpu)
    # the tiny base has a class of its own, and has never said a number as a coordinate
    tiny = folder.resolve() == SHIPPED.resolve()
    codec, why = notation("tiny" if tiny else config_of(folder).model_type, looked_at)
    kind, read = "tiny.TinyBackbone", ["pretrained: shipped"]
    if tiny:
        backbone: Backbone = TinyBackbone(codec=codec)
    else:
        exact = "half the memory; what trains is fp32" if machine.dtype == "bfloat16" else "exact"
        kind = "hf.HFBackbone"
        read = [f"pretrained: {folder}", f"dtype: {because(machine.dtype, exact)}"]
        backbone = HFBackbone(str(folder), dtype=machine.dtype, codec=codec)
        if (most := pixels_that_fit(backbone, looked_at)) is not None:
            del backbone  # two at once might not fit
            backbone = HFBackbone(str(folder), dtype=machine.dtype, codec=codec, max_pixels=most)
            read.append(f"max_pixels: {most:<10}# all pictures of a question, and its answer, fit into a row")
    longest = most_of(rows_of(backbone.encoder, backbone.image_token_id, looked_at))
    load = replace(load_of(backbone, longest, machine, grpo), every=2 if len(backbone.layers) >= 16 else 1)
    geometry = geometry_of(backbone)
    lines, vlm, form = options(backbone, method, machine, geometry, load)
    if tiny and method != "full":
        lines.append("train_token_rows: [codec]   # the tiny base never says numbers as coordinates; real ones can")
    head = f"""class_path: ts_lightning.models.{vlm}
init_args:
  backbone:
    class_path: ts_lightning.models.backbones.{kind}
    init_args:
"""
    text = head + indented("\n".join([*read, f"codec: {because(codec, why)}"]), 6) + indented("\n".join(lines), 2)
    return Setup(backbone, machine, text, longest, geometry, form, load)


def rows_of(encoder: Encoder, image_id: int, looked_at: list[Any]) -> list[Row]:
    """What each question takes; ValueError for one that is longer than the encoder's bound."""
    rows = []
    for row in map(encoder, looked_at):
        runs = groupby((row["step_ids"] >= 0).tolist())  # a question stands between two answers
        answers = [sum(run) for answered, run in runs if answered]
        tokens, of_pictures = len(row["input_ids"]), int((row["input_ids"] == image_id).sum())
        rows.append(Row(tokens, tokens - answers[-1], of_pictures, sum(answers), max(answers)))
    return rows


def most_of(rows: list[Row]) -> Row:
    """The most of each part."""
    return Row(*map(max, zip(*rows, strict=True)))


def pixels_that_fit(backbone: HFBackbone, looked_at: list[Any]) -> int | None:
    """The area of a picture with which every question is a row, and so is its prompt with an answer; None: they are."""
    resized: Any = backbone.encoder.resized_size  # type: ignore[attr-defined]
    if resized is None:
        return None
    bound = backbone.encoder.max_length
    rows = rows_of(replace(backbone.encoder, max_length=sys.maxsize), backbone.image_token_id, looked_at)
    new_tokens = most_of(rows).new_tokens
    tokens = [
        (bound - row.needs(new_tokens) + row.of_pictures) // len(sample.images)
        for row, sample in zip(rows, looked_at, strict=True)
        if row.needs(new_tokens) > bound and sample.images
    ]
    return max(min(tokens) * resized.keywords["factor"] ** 2, resized.keywords["min_pixels"]) if tokens else None


def load_of(backbone: Backbone, longest: Row, machine: Machine, grpo: bool) -> Load:
    """One row of a step: the longest, or of GRPO a prompt with its completions."""
    itemsize, on_cpu = backbone.embedding.weight.element_size(), not machine.gpu
    load = Load(1, 1, pictures=1, picture_tokens=longest.of_pictures, itemsize=itemsize, on_cpu=on_cpu)
    if not grpo:
        # new tokens are an evaluation's; all answers of a row have a loss
        answer = max(longest.answers, longest.new_tokens)
        return replace(load, text=longest.tokens - longest.of_pictures, answer=answer)
    text, answers = longest.prompt - longest.of_pictures, GROUP * longest.new_tokens
    if backbone.branches:  # behind a prompt that is read once
        return replace(load, text=text + answers, answer=answers)
    return replace(load, text=GROUP * text + answers, answer=answers, pictures=GROUP)


def geometry_of(backbone: Backbone) -> Geometry:
    """The sizes of a model, without a copy of its weights."""
    with torch.device("meta"):
        return Geometry(random_model(backbone.model.config, "float32", type(backbone.model)), backbone.name)


def form_of(start: Start) -> Form:
    """How that was tuned which a run starts from."""
    method, given = sft_of(start), start.spec["init_args"] if start.spec else {}
    rank = given.get({"twist": "expert_rank", "lora": "rank"}.get(method, ""))
    return Form(method, rank, given.get("quantization"))


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


def options(
    backbone: Backbone, method: str, machine: Machine, geometry: Geometry, load: Load
) -> tuple[list[str], str, Form]:
    """The lines of a fresh vlm's options, its class, and the largest form of tuning that fits for one row."""
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    saving = ["activation_checkpointing: true   # layers are computed again in backward: memory for time"]
    saving = saving if parameters >= SMALL else []
    room = machine.room
    if method in ("lora", "grpo"):
        rank = 64 if parameters >= SMALL else 8
        plans = [plan(geometry, Form("lora", rank, quantization), load) for quantization in (None, *QUANTISED)]
        fitting = next((made for made in plans if made.peak <= room), None)
        if fitting is None:
            least = min(made.peak for made in plans) / GiB
            seen = f"{method}, LoRA of rank {rank}, which needs {least:.1f} GiB even over a quantised base"
            raise ValueError(f"method: seen {seen}, expected {LARGER}")
        needs = f"over the base as it is, it would need {plans[0].peak / GiB:.0f} GiB: ts-lightning plan"
        codes = fitting.form.quantization
        return (
            [
                f"rank: {rank}                 # {'some hundred million numbers' if rank == 64 else 'a small model'}",
                f"lora_alpha: {2 * rank}          # twice the rank",
                "targets: all-linear      # every linear layer of the decoder",
                *([f"quantization: {codes:<10}# {needs}"] if codes else []),
                *saving,
            ],
            "LoRAVLM",
            fitting.form,
        )
    if method == "full":
        form = Form("full")
        needs = f"{parameters * BYTES_TRAINED / GiB:.1f} GiB with AdamW's states"
        more = ", more than there is: -c trainer/fsdp.yaml" if plan(geometry, form, load).peak > room else ""
        return [f"train: ['*']             # every parameter: {needs}{more}", *saving], "PlainVLM", form
    layers, every = len(backbone.layers), load.every
    twins = [expert for slot in geometry.slots[::every] for expert in experts_of(slot)]
    odd = next((type(expert).__name__ for expert in twins if not expert_form(expert, plain=False)), None)
    found = largest_twist(geometry, load, room, () if odd else LOW_RANKS)
    full = plan(geometry, Form("twist"), load).peak / GiB
    if found is None and odd:
        seen = f"twist for experts of {odd}, which have no form of low rank"
        raise ValueError(f"method: seen {seen}; full copies need {full:.1f} GiB, expected lora, or {LARGER}")
    if found is None:
        least = plan(geometry, Form("twist", LOW_RANKS[-1], "nf4"), load).peak / GiB
        seen = f"twist, which needs {least:.1f} GiB even with experts of rank {LOW_RANKS[-1]} over a quantised base"
        raise ValueError(f"method: seen {seen}, expected {LARGER}")
    form = found.form
    needs = f"full copies would need {full:.0f} GiB: ts-lightning plan"
    codes = "more than the base in bf16 leaves room for"
    return (
        [
            "num_experts: 2           # the paper's grounding experts",
            "top_k: 1                 # one of them a token, as the paper's counts suggest",
            f"every: {every}                 # of {layers} decoder layers: 2 from 16 on, as in the paper",
            *([f"expert_rank: {form.rank:<11}# {needs}"] if form.rank else []),
            *([f"quantization: {form.quantization:<10}# {codes}"] if form.rank and form.quantization else []),
            *saving,
        ],
        "TwinExpertVLM",
        form,
    )


def batches(setup: Setup) -> str:
    """The lines of the micro-batches."""
    micro = setup.micro_batch
    why = f"of {setup.machine.memory / GiB:.0f} GiB; the result is the same for any"
    return f"micro_batch_size: {micro}           # {why}\neval_batch_size: {micro}            # as above\n"


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


def rollouts(setup: Setup) -> str:
    """The callback that draws completions and rewards them."""
    return f"""- class_path: ts_lightning.rl.RolloutCallback
  init_args:
    num_generations: {GROUP}        # completions of a prompt, which are compared with each other
    rollout_batch_size: {setup.rollout_batch:<5}# prompts that are answered at once: what memory has room for
    max_new_tokens: {setup.longest.new_tokens}
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
