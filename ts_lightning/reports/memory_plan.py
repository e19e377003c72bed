"""What tuning needs of a GPU's memory, counted from a model's config.json on the meta device; nothing is loaded.

What stays is exact: weights, gradients, the optimizer's states. Activations are those of one micro-batch with
recomputed layers: the input of every layer, a vision tower's where it trains, and of one layer all that its backward
needs, or the logits, whichever is more. `python -m tools.bench memory` holds the sum against measured peaks.

Legend: N tokens of a micro-batch, H hidden size, F expert size, V vocabulary, A tokens of answers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ts_lightning.models.backbones.hf import LONGEST_ROW, config_of, dense_experts, mlp_slot
from ts_lightning.models.backbones.hf_processor import tiled_size
from ts_lightning.models.backbones.hub_layout import random_model, read_config
from ts_lightning.models.backbones.moe_llava import MoELlavaBackbone
from ts_lightning.models.experts import expert_form
from ts_lightning.models.low_rank import experts_of
from ts_lightning.models.moe import MoE
from ts_lightning.models.package import PackageOptions
from ts_lightning.models.twin_vlm import grounding_experts
from ts_lightning.models.vlm import blocks_beside

GiB = 2**30
RESERVED = GiB  # of a GPU: CUDA's context, the libraries' workspaces, fragments
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 2 / 64}  # bytes a weight, nf4's with its scale; int8 has one for each output
# What config.json does not say of pictures: tiles along a side, at most, by the processors that families are published
# with; those that enlarge small pictures to them; patches along a side of a token; tokens at most.
TILES_ALONG = {"internvl": 3, "aya_vision": 3, "minicpmv4_6": 3, "idefics3": 4, "smolvlm": 4}
ENLARGED = {"idefics3", "smolvlm"}
MERGED = {"minicpmv4_6": 4, "gemma4": 3}
SOFT_TOKENS = {"gemma4": 280}
RANKS = (256, 128, 64, 32, 16, 8)


@dataclass(frozen=True)
class Form:
    """A way of tuning: "twist" (`rank` None: full copies), "lora" or "full", over a base that is quantised or not."""

    method: str
    rank: int | None = None
    quantization: str | None = None

    @property
    def name(self) -> str:
        """As a table has it."""
        rank = {"full": ""}.get(self.method, " full copies" if self.rank is None else f" rank {self.rank}")
        return {"twist": "TWIST", "lora": "LoRA", "full": "full tuning"}[self.method] + rank


@dataclass(frozen=True)
class Load:
    """What a step is given.

    micro_batch: rows, eval_batch: those of an evaluation (by default as of `data`); text, pictures, picture_tokens: of
    a row; answer: of its text what has a loss, and as many new tokens does an evaluation make. num_experts, every: of
    TWIST. itemsize: bytes of a frozen weight and of what is computed with (bf16: 2); what trains is in fp32.
    optimizer_bytes: of its states for a weight (8-bit AdamW: 2). on_cpu: activations go in pieces there, and the
    optimizer makes no copies.
    """

    micro_batch: int = 1
    eval_batch: int = 16
    text: int = 512
    answer: int = 128
    pictures: int = 1
    picture_tokens: int = 576
    num_experts: int = 2
    every: int = 2
    itemsize: int = 2
    optimizer_bytes: int = 8
    on_cpu: bool = False

    @property
    def tokens(self) -> int:
        """N."""
        return self.micro_batch * self.row

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return self.text + self.pictures * self.picture_tokens


@dataclass(frozen=True)
class Plan:
    """Bytes of one form. `evaluation`: beside weights and states; `package`: what is saved, of LoRA in fp32."""

    form: Form
    weights: float
    gradients: float
    optimizer: float
    activations: float
    evaluation: float
    package: float
    trained: int

    @property
    def peak(self) -> float:
        """The most that is there at once: a step, or an evaluation between two."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.evaluation)


class Geometry:
    """A model of a config.json on the meta device, and the sizes that a plan asks for."""

    def __init__(self, model: Any, where: str) -> None:
        self.model = model
        self.layers = list(model.get_decoder().layers)
        slot = mlp_slot(model.get_decoder().layers, where)
        self.slots = [getattr(layer, slot) for layer in self.layers]
        self.text = model.config.get_text_config()
        self.hidden: int = self.text.hidden_size

    @classmethod
    def of(cls, folder: str | Path) -> "Geometry":
        """That of a folder; only its config.json is read. ValueError for no model of pictures and text."""
        values = read_config(Path(folder))
        with torch.device("meta"):
            if values.get("model_type") in MoELlavaBackbone.model_types:
                return cls(MoELlavaBackbone(config=values).model, str(folder))
            config = config_of(Path(folder))
            return cls(random_model(config, "float32"), str(folder))

    @cached_property
    def linears(self) -> list[Any]:
        """The linear layers of the decoder's layers, routers left out: what is quantised, and what LoRA adapts."""
        routers = {id(m.router) for layer in self.layers for m in layer.modules() if isinstance(m, MoE)}
        found = (m for layer in self.layers for m in layer.modules() if isinstance(m, nn.Linear))
        return [linear for linear in found if id(linear) not in routers]

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def queries(self) -> int:
        """Width of the queries of all heads."""
        return self.text.num_attention_heads * self.head

    @property
    def keys(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return (getattr(self.text, "num_key_value_heads", None) or self.text.num_attention_heads) * self.head

    @property
    def head(self) -> int:
        """Width of one head."""
        return getattr(self.text, "head_dim", None) or self.hidden // self.text.num_attention_heads

    def experts(self, layer: int) -> list[nn.Module]:
        """The understanding experts of a layer."""
        return dense_experts(self.slots[layer]) or experts_of(self.slots[layer])

    def largest_rank(self, every: int) -> int:
        """The largest rank of experts over those of all twin layers; 0 where some have no form of low rank."""
        sides: list[int] = []
        for expert in (expert for slot in self.slots[::every] for expert in experts_of(slot)):
            if (form := expert_form(expert, plain=False)) is None:
                return 0
            linears = [getattr(expert, name) for name in (*form.inputs, form.output)]
            sides += [side for linear in linears for side in (linear.in_features, linear.out_features)]
        return min(sides)

    def inner(self, layer: int) -> tuple[int, int]:
        """F times the understanding experts of a token, and how many products make the hidden (2: gate and up)."""
        form = expert_form(self.experts(layer)[0], plain=False)
        if form is None:
            return 4 * self.hidden, 2
        width = getattr(self.experts(layer)[0], form.inputs[0]).out_features
        return width * self.chosen(layer), len(form.inputs)

    def chosen(self, layer: int) -> int:
        """The understanding experts of a token."""
        slot = self.slots[layer]
        chosen = slot.top_k if isinstance(slot, MoE) else getattr(self.text, "num_experts_per_tok", None) or 1
        return min(chosen, len(self.experts(layer)))

    def picture_tokens(self, side: int = 1024) -> int:
        """Tokens of a square picture of `side` pixels, at most: of a tower of one size its own number, with all tiles.

        Where a model takes any size, they are bounded as `HFBackbone` bounds them. Only config.json is asked: tiles are
        those that the family's makers have set.
        """
        if (fixed := getattr(self.model.config, "mm_tokens_per_image", None)) is not None:
            return fixed
        if self.any_size:
            most = SOFT_TOKENS.get(self.model.config.model_type, LONGEST_ROW // 2)
            return min((side // self.token_side) ** 2, most)
        along = self.tile // self.token_side
        if (resolution := self.grid(side)) is None:
            return self.tiles(side) * along**2
        columns, rows = (pixels // self.token_side for pixels in resolution)  # one picture of all tiles
        limit = str(getattr(self.model.config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
        if limit.isdecimal() and rows * columns > int(limit) * along**2:
            rows = columns = math.isqrt(int(limit) * along**2)
        return along**2 + rows * (columns + 1)  # each row ends in a token

    def tiles(self, side: int = 1024) -> int:
        """How many pictures a tower is given of a square picture of `side` pixels, at most: it, and its tiles."""
        if self.any_size:
            return 1
        if (resolution := self.grid(side)) is not None:
            return 1 + math.prod(pixels // self.tile for pixels in resolution)
        kind = self.model.config.model_type
        most = TILES_ALONG.get(kind, 1)
        along = most if kind in ENLARGED else min(most, -(-side // self.tile))
        return 1 + along**2 if along > 1 else 1

    @cached_property
    def tower(self) -> list[list[tuple[int, int]]]:
        """(inputs, outputs) of the linear layers of every block beside the decoder."""
        blocks = blocks_beside(self.model.get_decoder(), self.model)
        found = [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks]
        return [[(linear.in_features, linear.out_features) for linear in linears] for linears in found if linears]

    @cached_property
    def patches(self) -> float:
        """Patches that the tower reads for one token of the decoder."""
        patch = first(getattr(getattr(self.model.config, "vision_config", None), "patch_size", None)) or 14
        if self.any_size:
            return (self.token_side / patch) ** 2
        return self.tiles() * (self.tile // patch) ** 2 / self.picture_tokens()

    def grid(self, side: int) -> tuple[int, int] | None:
        """(width, height) that a square picture is cut into tiles at, of a family with a list of them."""
        pinpoints = getattr(self.model.config, "image_grid_pinpoints", None)
        return tiled_size(pinpoints, side) if pinpoints else None

    @cached_property
    def any_size(self) -> bool:
        """Whether the tower takes pictures of any size."""
        config, vision = self.model.config, getattr(self.model.config, "vision_config", None)
        merges = (vision, "spatial_merge_size"), (config, "spatial_merge_size"), (vision, "merge_kernel_size")
        return any(getattr(part, name, None) for part, name in merges) or not self.tile

    @property
    def tile(self) -> int:
        """The side in pixels of what the tower takes; 0 where it takes any size."""
        config, vision = self.model.config, getattr(self.model.config, "vision_config", None)
        return first(getattr(config, "image_size", None)) or first(getattr(vision, "image_size", None)) or 0

    @property
    def token_side(self) -> int:
        """The side in pixels of what becomes one token: a patch, or several that are merged."""
        config, vision = self.model.config, getattr(self.model.config, "vision_config", None)
        merged = MERGED.get(config.model_type, 1)
        for name in ("spatial_merge_size", "merge_kernel_size", "hidden_stride", "scale_factor", "downsample_factor"):
            if config.model_type not in MERGED:
                merged *= first(getattr(vision, name, None)) or first(getattr(config, name, None)) or 1
        return int((first(getattr(vision, "patch_size", None)) or 14) * merged / getattr(config, "downsample_ratio", 1))


def first(value: Any) -> Any:
    """One side of what may be said for both."""
    return value[0] if isinstance(value, list | tuple) else value


def plan(geometry: Geometry, form: Form, load: Load) -> Plan:
    """The bytes of one form of tuning."""
    trained = trained_numbers(geometry, form.method, form.rank, load.num_experts, load.every)
    if form.method == "full":
        weights = 4.0 * trained
    else:
        narrow = sum(linear.weight.numel() for linear in geometry.linears) if form.quantization else 0
        weights = load.itemsize * (geometry.parameters - narrow) + 4.0 * trained
        weights += narrow * QUANTISED.get(form.quantization or "", 0.0)
    copies = 0 if load.on_cpu else 4.0 * trained  # the optimizer updates all weights at once
    return Plan(
        form,
        weights,
        gradients=4.0 * trained,
        optimizer=float(load.optimizer_bytes * trained),
        activations=max(activations(geometry, form, load), copies),
        evaluation=evaluation(geometry, load),
        package=float((4 if form.method == "lora" else load.itemsize) * trained),
        trained=trained,
    )


def evaluation(geometry: Geometry, load: Load) -> float:
    """Keys and values of an evaluation's rows, and what a layer's MLP makes of their prompts."""
    cached = 2 * (load.row + load.answer) * len(geometry.layers) * geometry.keys
    width, inputs = max(geometry.inner(i) for i in range(min(2, len(geometry.layers))))
    made = load.row * (3 * geometry.hidden + (inputs + 1) * width)
    return float(load.eval_batch * (cached + made) * load.itemsize)


@cache
def trained_numbers(geometry: Geometry, method: str, rank: int | None, num_experts: int, every: int) -> int:
    """The parameters that train."""
    if method == "full":
        return geometry.parameters
    if method == "lora":
        return sum((rank or 0) * (linear.in_features + linear.out_features) for linear in geometry.linears)
    options = PackageOptions(num_experts=num_experts, every=every, expert_rank=rank)
    with torch.device("meta"):
        made = [grounding_experts(geometry.experts(i), options) for i in range(0, len(geometry.layers), every)]
    return 1 + sum(p.numel() for experts in made for p in experts.parameters())  # 1: alpha


def activations(geometry: Geometry, form: Form, load: Load) -> float:
    """What forward and backward of a micro-batch hold at most, beside weights and gradients; layers are recomputed."""
    n, b = load.tokens, load.itemsize
    inputs = len(geometry.layers) * n * geometry.hidden * b
    twins = range(0, len(geometry.layers), load.every) if form.method == "twist" else ()
    layers = max(layer_bytes(geometry, form, load, i, i in twins) for i in range(min(2, len(geometry.layers))))
    vocabulary = geometry.text.vocab_size
    logits = load.micro_batch * load.answer * vocabulary * (3 * b if b == 4 else b + 3 * 4)
    mlp = geometry.experts(0)[0]
    layers += sum(p.numel() for p in mlp.parameters()) * b if form.quantization else 0  # as they are multiplied with
    kept, block = tower_bytes(geometry, load) if form.method == "full" else (0.0, 0.0)
    return kept + max(inputs + 3 * n * geometry.hidden * b + max(layers, logits), block)


def tower_bytes(geometry: Geometry, load: Load) -> tuple[float, float]:
    """What a vision tower that trains keeps of a micro-batch, its blocks' inputs, and what the largest block needs."""
    n = load.micro_batch * load.pictures * load.picture_tokens * geometry.patches
    b = load.itemsize
    norm = b if b == 4 else b + 2 * 4  # computed in fp32
    kept = sum(linears[0][0] for linears in geometry.tower) * n * b
    # around every linear layer what it reads and what it makes, and as much of the widest on the way back
    needs = [
        sum(map(sum, linears)) * b + linears[0][0] * norm + 2 * max(map(max, linears)) * b for linears in geometry.tower
    ]
    return kept, max(needs, default=0) * n


def layer_bytes(geometry: Geometry, form: Form, load: Load, layer: int, twin: bool) -> float:
    """What one decoder layer keeps for its backward, and the most that this makes on its way."""
    n, b, h = load.tokens, load.itemsize, geometry.hidden
    f, inputs = geometry.inner(layer)
    norms = n * h * (b if b == 4 else b + 2 * 4)  # computed in fp32
    attention = n * b * 4 * geometry.queries
    hidden = n * f * b
    slot = hidden * (3 if inputs == 2 else 1)  # gate, act(gate), up
    backward = hidden * 2
    if twin and form.rank is not None:
        slot = hidden * inputs + n * h * b
        backward = hidden * (inputs if load.on_cpu else inputs + 6)
    elif twin:
        slot += hidden * inputs + 3 * n * h * b
        backward = hidden * (inputs + 1 if load.on_cpu else inputs + 4)
    elif form.method == "lora":
        read = n * (3 * h + geometry.queries + inputs * geometry.chosen(layer) * h + f)  # by all matrices of the layer
        slot += read * (b + (b if load.on_cpu else 1))  # each drops some of its input: that, and the mask
    elif form.method == "full":
        slot += hidden + n * h * b
        attention += 2 * n * h * b
    return norms + attention + slot + backward


def forms(geometry: Geometry, rank: int, lora_rank: int, every: int) -> Iterator[Form]:
    """The rows of a plan: every method that there is, over the base as it is and quantised."""
    low = geometry.largest_rank(every) > 0
    yield Form("twist")
    for quantization in (None, *QUANTISED):
        if low:
            yield Form("twist", rank, quantization)
        yield Form("lora", lora_rank, quantization)
    yield Form("full")


def largest_micro_batch(geometry: Geometry, form: Form, load: Load, room: float) -> int:
    """The largest power of two of rows whose step fits into `room` bytes; 0 where one row does not."""
    fitting = 0
    for exponent in range(11):
        if plan(geometry, form, replace(load, micro_batch=2**exponent)).peak > room:
            break
        fitting = 2**exponent
    return fitting


def largest_twist(geometry: Geometry, load: Load, room: float, ranks: Sequence[int] = RANKS) -> Plan | None:
    """The first that fits: full copies, then falling ranks, over the base as it is; these ranks over int8, then nf4."""
    possible = [rank for rank in ranks if rank <= geometry.largest_rank(load.every)]
    for quantization in (None, *QUANTISED):
        for rank in possible if quantization else (None, *possible):
            made = plan(geometry, Form("twist", rank, quantization), load)
            if made.peak <= room:
                return made
    return None


def room_of(gpu: float) -> float:
    """Bytes of a card of `gpu` GiB that tensors may take."""
    return gpu * GiB - RESERVED
