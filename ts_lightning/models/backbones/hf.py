"""Any vlm of transformers by its folder: its parts are found by looking, its pictures and turns are its own.

The model's own forward puts pictures among the tokens; it is stopped where it calls its decoder, and what it would have
given there (embeddings, DeepStack features, per-layer inputs) is what ours gets. Masks are ours, because branches
(`models.packing`) are; they have the family's windows and its sight in both directions inside of pictures.

Legend: B rows, T positions, H hidden size, Q queries, K keys.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText
from transformers.cache_utils import Cache, DynamicCache

from ts_lightning.grounding.codecs import backbone_codec
from ts_lightning.models.backbones.base import Backbone, number_of_pictures
from ts_lightning.models.backbones.hf_families import (
    BEGUN,
    BLOCKS,
    CODECS,
    COUNTED,
    FLAT,
    SIDES,
    image_token_of,
    template_of,
)
from ts_lightning.models.backbones.hf_processor import (
    HFEncoder,
    RopePositions,
    bounds_of,
    load_processor,
    resizing_of,
    stored_template,
    without_crop,
)
from ts_lightning.models.backbones.hf_template import Chat, chat_of, derive, renderer
from ts_lightning.models.backbones.hub_layout import (
    check_tokens,
    fit_for_answers,
    load_weights_of,
    read_config,
    read_tokenizer,
    save_folder,
    saved_dtype,
    side_files,
    squares,
    with_pixels,
)
from ts_lightning.models.packing import PAD_BRANCH, both_ways, branch_mask, runs, within

# What a family's forward gives its decoder and we give ourselves.
OURS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict", "cache_position"}
LONGEST_ROW = 8192  # tokens
TYPES = ("mm_token_type_ids", "token_type_ids")  # 1 at the tokens of a picture
_stop: ContextVar[bool] = ContextVar("stop", default=False)


class HFBackbone(Backbone):
    """Loads a folder that `AutoModelForImageTextToText` reads, whatever its family.

    Args:
        pretrained: Folder with config, safetensors, tokenizer, processor and chat template.
        dtype: Of the weights: "float32", "bfloat16", ...
        codec: Notation of regions; None is the family's own, where its makers have published one, else "scout".
        codec_grid: Another grid than the notation's own; the frame stays its own.
        max_length: Longest row in tokens.
        max_pixels: Larger pictures are reduced to this area, where the family takes any size; None is the processor's
            own bound, and no more than half of a row's tokens.
    """

    made_by = ()

    def __init__(
        self,
        pretrained: str,
        dtype: str = "float32",
        codec: str | None = None,
        codec_grid: str | None = None,
        max_length: int = LONGEST_ROW,
        max_pixels: int | None = None,
    ) -> None:
        super().__init__()
        folder = Path(pretrained)
        config = config_of(folder)
        self.family = config.model_type
        self.native_codec = CODECS.get(self.family, "scout")
        self.side_files = side_files(folder)
        tokenizer = read_tokenizer(folder)
        self.processor = load_processor(folder, config, tokenizer)
        try:
            side = without_crop(self.processor.image_processor)
            resized = resizing_of(self.processor.image_processor, max_pixels, max_length // 2)
            if side:
                self.side_files = with_pixels(self.side_files, squares(side))
            elif resized:
                self.side_files = with_pixels(self.side_files, {"size": bounds_of(self.processor.image_processor)})
        except ValueError as error:
            raise ValueError(f"pretrained: {folder}: {error}") from None
        self.model = load_weights_of(AutoModelForImageTextToText, folder, config, dtype)
        self.model.eval()
        image_token = image_token_of(self.processor, tokenizer, config)
        self.image_id: int = tokenizer.convert_tokens_to_ids(image_token)
        chat = chat_by(folder, self.family, self.processor, tokenizer, self.model.generation_config)
        fit_for_answers(tokenizer, folder, image_token, chat.template.end.strip())
        check_tokens(self, tokenizer, image_token)
        self.name = f"{self.family}:{pretrained}"
        others = getattr(self.processor, "image_token_ids", None) if self.family in COUNTED else None
        self.picture_ids = sorted({self.image_id, *(others or ())})
        self.text_config = config.get_text_config()
        self.mlp_name = mlp_slot(self.layers, pretrained)
        self.takes = accepted(self.model)
        self.decoder.register_forward_pre_hook(_stop_here, with_kwargs=True)
        mode = "stretch" if side is None else "pad"
        size = (side, side) if side else resized or _as_it_is
        self.encoder = HFEncoder(
            tokenizer=tokenizer,
            image_token=image_token,
            image_tokens=0,
            image_size=side or 0,
            max_length=max_length,
            pixel_mode=mode,
            codec=backbone_codec(codec or self.native_codec, codec_grid, size, mode),
            template=chat.template,
            processor=self.processor,
            mark=chat.mark,
            accepted=tuple(name for name in self.takes if name not in (*TYPES, "labels", "inputs_embeds")),
            positions=RopePositions(type(self.inner), config) if hasattr(self.inner, "get_rope_index") else None,
            first_position=1 if self.family == "paligemma" else 0,
            behind_pictures=chat.behind,
            nested=self.family not in FLAT,
            resized_size=resized,
            packs=self.family != "paligemma" and not self.recurrent,
            joins=self.layer_types == {"full_attention"} and self.blocks_of_pictures is None,
        )
        self.encoder.of_pictures([Image.new("RGB", (64, 64))], f"pretrained: {folder}")  # it can, or says why not
        self.more_for_text = bool(self._more_for_text())

    @property
    def inner(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @property
    def decoder(self) -> Any:
        return self.model.get_decoder()

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def embedding(self) -> Any:
        return self.model.get_input_embeddings()

    @property
    def head(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def image_token_id(self) -> int:
        return self.image_id

    def decoder_inputs(self, batch: Mapping[str, Any], embeds_BTH: Tensor) -> dict[str, Any]:
        if not (number_of_pictures(batch) or self.more_for_text):
            return {"inputs_embeds": embeds_BTH}
        ids_BT = batch["input_ids"]
        given = {"input_ids": torch.where(ids_BT < len(self.embedding.weight), ids_BT, 0)}
        if "valid" in batch:
            given |= {"attention_mask": batch["valid"].long(), "position_ids": batch["position_ids"]}
        of_picture_BT = self.of_picture(ids_BT)
        given |= {name: of_picture_BT.long() for name in TYPES if name in self.takes}
        seen = self.at_decoder({**given, **self.picture_inputs(batch)})
        merged_BTH = seen.pop("inputs_embeds").to(embeds_BTH.dtype)
        return {"inputs_embeds": torch.where(of_picture_BT[..., None], merged_BTH, embeds_BTH), **seen}

    def picture_inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of all pictures of a batch, as the family's processor stacks them."""
        device, dtype = self.embedding.weight.device, self.embedding.weight.dtype
        rows = batch.get("pictures", ())
        sides = SIDES.get(self.family, {})
        names = rows[0] if len(rows) else ()
        stacked = {name: stack([row[name] for row in rows], sides.get(name, 0)).to(device) for name in names}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in stacked.items()}

    def at_decoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model's own forward calls its decoder with, of that which is not ours to give."""
        with stopped() as reached:
            try:
                self.model(**inputs, use_cache=False)
            except Reached as found:
                reached = found.given
        return {name: value for name, value in reached.items() if name not in OURS and value is not None}

    def _more_for_text(self) -> set[str]:
        """What the decoder gets beside embeddings, for text."""
        ids = torch.tensor([[self.encoder.tokenizer.eos_token_id]], device=self.embedding.weight.device)
        given = {name: torch.zeros_like(ids) for name in TYPES if name in self.takes}
        with torch.no_grad():
            seen = self.at_decoder({"input_ids": ids, **given})
        return {name for name, value in seen.items() if torch.is_tensor(value)} - {"inputs_embeds"}

    @cached_property
    def unused(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parameters beside the decoder that no picture reaches: a tower's layers behind the one that is read, ...

        Found in the graph of a small picture's features; nothing is kept for a backward.
        """
        read = {*self.decoder.parameters(), *self.head.parameters()}
        beside = {name: p for name, p in self.model.named_parameters() if p not in read}
        encoder: Any = self.encoder
        texts, pictures = encoder.of_pictures([Image.new("RGB", (64, 64))])
        ids = encoder.tokenizer(texts[0], add_special_tokens=False)["input_ids"]
        ids_BT = torch.tensor([ids], device=self.embedding.weight.device)
        trained = [p for p in beside.values() if p.requires_grad]
        for parameter in beside.values():
            parameter.requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_forget, _forget):
            embeds_BTH = self.embedding(torch.where(ids_BT < len(self.embedding.weight), ids_BT, 0))
            given = self.decoder_inputs({"input_ids": ids_BT, "pictures": [pictures]}, embeds_BTH)
        for parameter in beside.values():
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        reached = parameters_of(given)
        return tuple(name for name, parameter in beside.items() if parameter not in reached)

    def mask(
        self,
        query_BQ: Tensor,
        key_BK: Tensor | None = None,
        batch: Mapping[str, Any] | None = None,
        plain: bool = False,
    ) -> Any:
        if self.recurrent:
            return self.recurrent_mask(query_BQ, key_BK)
        window: Any = getattr(self.text_config, "sliding_window", None)
        slides = "sliding_attention" in self.layer_types and window is not None
        blocks_BT = None if batch is None else self.blocks(query_BQ if query_BQ.ndim == 2 else query_BQ[0], batch)
        if plain and not slides and blocks_BT is None:
            return None
        causal = branch_mask(query_BQ, key_BK)
        full = causal if blocks_BT is None else both_ways(causal, blocks_BT)
        if not slides:
            return full
        if self.family == "paligemma" and blocks_BT is not None:  # its blocks go beyond the window
            return {"full_attention": full, "sliding_attention": both_ways(within(causal, window), blocks_BT)}
        whole = causal if self.family == "gemma4" else full  # Gemma 4 sees pictures whole in sliding layers only
        return {"full_attention": whole, "sliding_attention": within(full, window)}

    def recurrent_mask(self, query_BQ: Tensor, key_BK: Tensor | None) -> dict[str, Tensor | None]:
        """For each kind of layer; ValueError for branches: a recurrent state has one past."""
        if int(query_BQ.max()) > 1:
            raise ValueError(
                f"{self.family}: seen several answers or steps behind one prompt, expected one: "
                "its recurrent layers have no branches (isolated steps)"
            )
        real_BQ = query_BQ != PAD_BRANCH
        return {
            "full_attention": branch_mask(query_BQ, key_BK),
            "linear_attention": None if key_BK is not None else real_BQ,
        }

    def cache(self) -> Cache:
        return DynamicCache(config=self.text_config) if self.recurrent else super().cache()

    @property
    def layer_types(self) -> set[str]:
        """The kinds of the decoder's layers."""
        return set(getattr(self.text_config, "layer_types", None) or ("full_attention",))

    @property
    def recurrent(self) -> bool:
        """Whether layers keep a state in place of keys and values."""
        return bool(self.layer_types - {"full_attention", "sliding_attention"})

    @property
    def branches(self) -> bool:  # type: ignore[override]
        return not self.recurrent

    def expert_seeds(self, slot: nn.Module) -> list[nn.Module]:
        return dense_experts(slot) or super().expert_seeds(slot)

    @property
    def blocks_of_pictures(self) -> str | None:
        """What the decoder sees both ways: "prefix", each picture ("runs"), all pictures ("all"), or nothing (None)."""
        if getattr(self.text_config, "use_bidirectional_attention", None) == "vision":
            return "runs"
        return BLOCKS.get(self.family)

    def blocks(self, branch_BT: Tensor, batch: Mapping[str, Any]) -> Tensor | None:
        """[B, T] the block of tokens that see each other both ways, -1 for none; None for a family without blocks."""
        if self.blocks_of_pictures is None:
            return None
        if self.blocks_of_pictures == "prefix":  # the picture and the question, as a whole
            answer_BT = (batch["step_ids"] >= 0).cumsum(1) > 0 if "step_ids" in batch else branch_BT > 0
            return torch.where((branch_BT == 0) & ~answer_BT, 0, -1)
        picture_BT = self.of_picture(batch["input_ids"]) & (branch_BT != PAD_BRANCH)
        return runs(picture_BT) if self.blocks_of_pictures == "runs" else torch.where(picture_BT, 0, -1)

    def of_picture(self, ids_BT: Tensor) -> Tensor:
        """Whether a token is one of a picture's, its marks included where the family counts them."""
        return torch.isin(ids_BT, torch.tensor(self.picture_ids, device=ids_BT.device))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        save_folder(folder, self.model, self.encoder.tokenizer, self.side_files, dtype)


def parameters_of(value: Any) -> set[Tensor]:
    """The leaves of the graph behind a tensor, or behind those in a mapping or a list."""
    tensors, nodes, seen = [value], [], set()
    while tensors:
        one = tensors.pop()
        if torch.is_tensor(one):
            nodes.append(one.grad_fn)
        elif isinstance(one, Mapping | list | tuple):
            tensors += one.values() if isinstance(one, Mapping) else one
    while nodes:
        node: Any = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    return {node.variable for node in seen if hasattr(node, "variable")}


def _forget(value: Any) -> Any:
    """In place of what a backward would need."""


class Reached(Exception):
    """The forward that was stopped has come to its decoder."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given


def as_backbone(backbone: Backbone | str) -> Backbone:
    """The backbone itself, or that of a folder in fp32; it warns where the folder was saved in 16 bits."""
    if not isinstance(backbone, str):
        return backbone
    if dtype := saved_dtype(Path(backbone)):
        warnings.warn(
            f"backbone: {backbone} is loaded in float32, twice the memory of its {dtype}, "
            f"which HFBackbone with pretrained and dtype: {dtype} keeps",
            stacklevel=3,
        )
    return HFBackbone(backbone)


def _stop_here(module: nn.Module, arguments: Any, given: dict[str, Any]) -> None:
    if _stop.get():
        raise Reached(dict(given))


@contextmanager
def stopped() -> Iterator[dict[str, Any]]:
    """Inside, a forward ends at the decoder."""
    token = _stop.set(True)
    try:
        yield {}
    finally:
        _stop.reset(token)


def _as_it_is(size: tuple[int, int]) -> tuple[int, int]:
    return size


def config_of(folder: Path) -> Any:
    """The config object of a folder; ValueError for a family that transformers has no vlm of."""
    values = read_config(folder)
    kind = values.get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"pretrained: seen model_type {kind!r} in {folder} ({reason})") from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"pretrained: seen model_type {kind!r} in {folder}, expected a model of pictures and text")
    return config


def chat_by(folder: Path, family: str, processor: Any, tokenizer: Any, generation: Any) -> Chat:
    """The chat template of a folder, or of its family where there are none; ValueError in one line."""
    source = chat_of(stored_template(folder) or tokenizer.chat_template)
    image_token = processor.image_token
    if source is None:
        if (own := template_of(family, tokenizer)) is None:
            raise ValueError(f"pretrained: seen no chat template in {folder}, expected chat_template.jinja")
        return own
    found = getattr(generation, "eos_token_id", None)
    ids = [found] if isinstance(found, int) else list(found or [])
    ends = {*tokenizer.convert_ids_to_tokens(ids), tokenizer.eos_token}
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    try:
        chat = derive(renderer(tokenizer, source), image_token, special, ends, tokenizer.eos_token)
    except ValueError as error:
        raise ValueError(f"pretrained: {folder}: {error}") from None
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"pretrained: {folder}: chat template: can't be rendered: {reason}") from None
    first = tokenizer("a")["input_ids"][:1]
    bos = tokenizer.bos_token if family not in BEGUN else tokenizer.bos_token or tokenizer.eos_token
    begun = family in BEGUN or first == [tokenizer.bos_token_id]
    if bos is not None and begun and not chat.template.system.startswith(bos):
        chat.template.system = bos + chat.template.system
    return chat


def mlp_slot(layers: nn.ModuleList, where: str) -> str:
    """The name under which every decoder layer has its MLP (or its block of experts); ValueError where none has."""
    for name, child in layers[0].named_children():
        matrices = any(parameter.ndim > 1 for parameter in child.parameters())
        attends = any(hasattr(child, part) for part in ("q_proj", "qkv_proj", "o_proj", "out_proj", "in_proj_qkv"))
        if matrices and not attends and all(hasattr(layer, name) for layer in layers) and "attn" not in name:
            return name
    raise ValueError(f"pretrained: seen no MLP in the decoder layers of {where}, expected one in every layer")


def accepted(model: Any) -> dict[str, inspect.Parameter]:
    """The arguments that the model's forward takes, by its own and its inner model's signature."""
    return {
        name: parameter
        for part in (model, model.base_model)
        for name, parameter in inspect.signature(part.forward).parameters.items()
        if name not in OURS
    }


class DenseExpert(nn.Module):
    """One expert of a packed block as an MLP of its own."""

    def __init__(self, gate_FH: Tensor, up_FH: Tensor, down_HF: Tensor, activation: nn.Module) -> None:
        super().__init__()
        for name, weight in (("gate_proj", gate_FH), ("up_proj", up_FH), ("down_proj", down_HF)):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.detach())  # a view: copies are made of it
            setattr(self, name, linear)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        parts: Any = self
        return parts.down_proj(self.act_fn(parts.gate_proj(x)) * parts.up_proj(x))


def dense_experts(block: nn.Module) -> list[nn.Module]:
    """The experts of a block that packs their weights ([E, 2F, H] and [E, H, F]); none of a block of another form."""
    packed: Any = getattr(block, "experts", None)
    gate_up, down = (getattr(packed, name, None) for name in ("gate_up_proj", "down_proj"))
    if not (torch.is_tensor(gate_up) and torch.is_tensor(down) and hasattr(packed, "act_fn")):
        return []
    if gate_up.shape[1] != 2 * down.shape[2]:  # transposed
        return []
    halves = [weight.chunk(2) for weight in gate_up]
    return [DenseExpert(gate, up, out, packed.act_fn) for (gate, up), out in zip(halves, down, strict=True)]


def stack(parts: list[Tensor], side: int = 0) -> Tensor:
    """Tensors one behind the other; their further sides are filled with zeros where they differ, as processors do."""
    if side:
        return torch.cat(parts, side)
    sides = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        fill = [n for have, want in zip(part.shape[:0:-1], sides[::-1], strict=True) for n in (0, want - have)]
        padded.append(torch.nn.functional.pad(part, fill) if any(fill) else part)
    return torch.cat(padded)
