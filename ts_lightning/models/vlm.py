"""The vlm that a LightningModule trains: a backbone, what is added to it, and one forward for every task.

Legend: B rows, T positions, N loss positions, H hidden size, V vocabulary.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GradientCheckpointingLayer

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.tasks import GROUNDING, UNDERSTANDING
from ts_lightning.models.attention import block_masks, sections, takes_blocks, use_attention
from ts_lightning.models.backbones.base import Backbone, notation, number_of_pictures
from ts_lightning.models.backbones.hf import as_backbone
from ts_lightning.models.encode import Encoder, TaskEncoder
from ts_lightning.models.generate import generate_texts
from ts_lightning.models.moe import MoE
from ts_lightning.models.package import load_weights
from ts_lightning.models.packing import PAD_BRANCH, count_on, of_questions, question_places, right_padded
from ts_lightning.models.quantization import quantize
from ts_lightning.models.recorded import Recorded
from ts_lightning.models.routing import Routed, Routing, keep_routing, routing
from ts_lightning.models.task_router import TaskRouter
from ts_lightning.models.zero_gradients import with_zero_gradients

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class VLM(Recorded, nn.Module):
    """A backbone, an encoder of samples for it, a forward that gives logits at loss positions, and generation.

    activation_checkpointing: what is recomputed in backward: "none" (False), the "attention" of each decoder layer, or
    the "block" (True), the layer whole. attention: "auto", "sdpa", "flex" or "flash" (`models.attention`).
    quantization: hold the frozen matrices of the decoder's layers in "int8" or "nf4" (`models.quantization`).
    """

    encoder: Encoder

    def __init__(
        self,
        backbone: Backbone | str,
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        quantization: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone = as_backbone(backbone)
        self.init_args["backbone"] = backbone  # a folder's class is stored, not only its name
        self.encoder = self.base_encoder = backbone.encoder  # the second stays as it is
        self.base_identity = backbone.identity()
        if quantization is not None:
            quantize(backbone.layers, quantization)
            self.base_identity["quantization"] = quantization
        self.task_router: TaskRouter | None = None
        self.attention = use_attention(backbone.decoder, attention)
        recompute(recomputed_parts(backbone.layers, activation_checkpointing))

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self.tokenizer.pad_token_id

    @property
    def codec(self) -> Codec:
        """How boxes are written for this backbone."""
        return self.encoder.codec

    def encode(self, sample: Any, for_generation: bool = False, task: str | None = None) -> dict[str, Any]:
        """The row of one sample (`models.encode.Encoder`)."""
        return self.encoder(sample, for_generation, task)

    def encoder_for(self, task: str = "given") -> Callable[..., dict[str, Any]]:
        """What makes rows, picklable and without the model: for evaluation with the task that is named.

        `task` is "given" (the record's), "auto" (the task router's choice for each prompt), or one for every row.
        ValueError for a task without a package, or a skill that the router does not know.
        """
        if task == "given":
            return self.encoder
        if task != "auto":
            self.encoder.task_index(task)
            return TaskEncoder(self.encoder, partial(_always, task))
        for name in self.router.tasks:
            self.encoder.task_index(name, "task router")
        if missing := [name for name in self.skills if name not in self.router.tasks]:
            raise ValueError(f"task router: seen {', '.join(self.router.tasks)}, expected {missing[0]} among its tasks")
        return TaskEncoder(self.encoder, self.router)

    def forward(
        self,
        batch: Mapping[str, Any],
        isolated: bool = False,
        package: str | None = None,
        alpha: float | None = None,
    ) -> dict[str, Any]:
        """Logits where the loss is, and what the trainable routers did.

        Returns `logits` [N, V], `targets` [N], `positions` (row_N, column_N of the targets in `step_ids`), and per
        trainable router `router_probs` [n, E], `expert_ids` [n, K], `rows` [n]. With `isolated` every step sees image,
        question and itself only, and its first token is predicted from the last position of the prompt (TWIST eq. 8 to
        the letter: step j is conditioned on image and question, not on the steps before it). Of packed rows
        (`models.packing`) `step_ids` has a line for every question, and all of the output is as of rows of their own: a
        token of a prefix counts for each of its questions. `package`, `alpha`: as in `routing`.
        """
        step_ids_QL, valid_BT = batch["step_ids"], batch["valid"]
        question_N, column_N = (step_ids_QL >= 0).nonzero(as_tuple=True)
        rows_Q, columns_QL = question_places(batch)
        branch = branches(batch, isolated)
        plain = not isolated and "branch" not in batch and right_padded(valid_BT)  # pads are behind all that counts
        with self.routing(batch, self.training, package, alpha) as context:
            hidden_BTH = self.backbone.decoder(
                **self.decoder_inputs(batch, context),
                **self.masks(branch, batch, plain),
                position_ids=count_on(batch["position_ids"], valid_BT) if plain else batch["position_ids"],
                use_cache=False,
            ).last_hidden_state
        row_N, predictor_N = rows_Q[question_N], predictors(step_ids_QL, isolated)[question_N, column_N]
        hidden_NH = hidden_BTH[row_N, columns_QL[question_N, predictor_N]]
        logits_NV = self.logits(hidden_NH, batch["task"][row_N], context)
        routed = context.of_trained()
        if "columns" in batch:
            routed = [by_question(r, batch) for r in routed]
        return {
            "logits": logits_NV,
            "targets": batch["input_ids"][row_N, columns_QL[question_N, column_N]],
            "positions": (question_N, column_N),
            "router_probs": [r.probs_NE for r in routed],
            "expert_ids": [r.ids_NK for r in routed],
            "rows": [r.rows_N for r in routed],
        }

    def masks(self, branch: Tensor, batch: Mapping[str, Any], plain: bool = False) -> dict[str, Any]:
        """What the decoder takes of masks: that of `mask`, or, of joined rows on a CPU, one for each record."""
        if "record" not in batch or self.attention != "auto" or takes_blocks(self.attention, branch.device):
            return {"attention_mask": self.mask(branch, batch, plain)}
        return {"attention_mask": branch.new_ones(1, 1, 1, 1), "sections": sections(branch, batch["record"])}

    def mask(self, branch: Tensor, batch: Mapping[str, Any], plain: bool = False) -> Any:
        """The decoder's mask for branches [B, T] or [A, B, T], in the form of its attention; `plain` as there."""
        mask = self.backbone.mask(branch, batch=batch, plain=plain)
        return block_masks(mask) if takes_blocks(self.attention, branch.device) else mask

    def routing(
        self,
        batch: Mapping[str, Any],
        collect: bool = False,
        package: str | None = None,
        alpha: float | None = None,
        kept: dict[nn.Module, Any] | None = None,
    ) -> AbstractContextManager[Routing]:
        """The context that one forward runs in.

        collect: keep what the routers do. package: the one that answers every row of a skill (None: that of its task).
        alpha: mix with this weight in place of the learned one. kept: as in `models.routing.routing`. ValueError for a
        vlm without packages.
        """
        self.check_alpha(alpha)
        if package is not None:
            raise ValueError(f"package: seen {package!r} for a {type(self).__name__}, expected a vlm with twin experts")
        return routing(batch["task"], batch["valid"], self.skills, None, collect, kept)

    def check_alpha(self, alpha: float | None) -> None:
        """ValueError for a mixing weight that this vlm can't answer with."""
        if alpha is not None:
            raise ValueError(f"alpha: seen {alpha} for a {type(self).__name__}, expected a vlm with twin experts")

    @property
    def skills(self) -> tuple[str, ...]:
        """The names of tasks 1, 2, ..."""
        return self.encoder.skills or (GROUNDING,)

    def decoder_inputs(self, batch: Mapping[str, Any], context: Routing) -> dict[str, Any]:
        """What the decoder takes beside mask, positions and cache: `inputs_embeds` [B, T, H] and what a model adds."""
        embeds_BTH = self.token_embeddings(batch["input_ids"], context)
        if torch.is_grad_enabled() and not number_of_pictures(batch):
            embeds_BTH = with_zero_gradients(embeds_BTH, self._of_pictures())
        return self.backbone.decoder_inputs(batch, embeds_BTH)

    def frozen_features(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`features` of a batch whose pictures need no gradients, to be computed once for several forwards; else {}.

        Also {} for `HFBackbone`: what a family's own forward makes of pictures depends on the tokens around them.
        """
        if not len(batch.get("pixel_values", ())) or any(p.requires_grad for p in self._of_pictures()):
            return {}
        with torch.no_grad():
            return {"features": self.backbone.features(batch)}

    def _of_pictures(self) -> list[nn.Parameter]:
        """The parameters that only pictures reach."""
        read = {*self.backbone.decoder.parameters(), *self.backbone.head.parameters()}
        return [p for p in self.backbone.model.parameters() if p not in read]

    def token_embeddings(self, ids_BT: Tensor, context: Routing) -> Tensor:
        """[B, T, H] embeddings of tokens."""
        return self.backbone.embedding(ids_BT)

    def logits(self, hidden_NH: Tensor, task_N: Tensor, context: Routing) -> Tensor:
        """[N, V] logits; `task_N` is the task of each one's row, `context` the routing of its forward."""
        return self.backbone.head(hidden_NH)

    def routers(self) -> list[MoE]:
        """The mixtures of experts whose routers train, in the order of their layers."""
        found = (module for module in self.backbone.modules() if isinstance(module, MoE))
        return [moe for moe in found if moe.router.weight.requires_grad]

    @property
    def router(self) -> TaskRouter:
        """The task router of the packages, or the one that ts_lightning comes with."""
        if self.task_router is None:
            self.task_router = TaskRouter.load()
        return self.task_router

    def chosen_task(self, question: str, task: str = "auto", task_of: Callable[[str], str] | None = None) -> str:
        """The task that answers a question: `task`, or for "auto" what `task_of` (None: the task router) says.

        A task without a package is understanding's choice; without packages there is one path. ValueError for a `task`
        that has none.
        """
        if task != "auto":
            self.encoder.task_index(task)
            return task
        chosen = (task_of or self.router)(question) if self.encoder.skills else UNDERSTANDING
        return chosen if chosen in self.encoder.skills else UNDERSTANDING

    def generate(self, batch: Mapping[str, Any], max_new_tokens: int = 64, alpha: float | None = None) -> list[str]:
        """Greedy answers of a batch of prompts, special tokens of the codecs kept; `alpha` as in `routing`."""
        return self.run(generate_texts, batch, max_new_tokens, alpha)

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """`function(self, ...)` as one forward: where weights are sharded (`models.sharding`) they are gathered for it.

        What calls parts of the vlm, and not the vlm itself, goes through here.
        """
        return function(self, *args, **kwargs)

    def identity(self) -> dict[str, Any]:
        """Which base this is: class, name and sha256 of its weights before anything was added, quantised or trained."""
        return self.base_identity

    def log_values(self) -> dict[str, float]:
        """Scalars worth logging at every step."""
        return {}

    def check_options(self, stored: Mapping[str, Any], where: str | Path, weights: Collection[str] = ()) -> None:
        """ValueError names the first of `weights_of` that comes to something else here than where `weights` trained.

        `stored` is the {class_path, init_args} of the vlm that they are of (no class: one like this). Another notation
        of boxes is said in a warning: to train on in another one is a choice.
        """
        given, named = stored["init_args"], str(stored.get("class_path", type(self).__name__)).rpartition(".")[2]
        codec, own = self.backbone.codec_of(given.get("backbone")), self.weights_of(weights)
        written, here = notation(codec), notation(self.codec)
        if written != here:
            log.warning(
                "init_from %s: seen weights that were trained to write %s, here boxes are %s", where, written, here
            )
        trained = {name: list(v) if isinstance(v := self.argument(name, given), tuple) else v for name in own}
        if named == type(self).__name__:  # what neither call names is what the class makes of it
            unsaid = {name for name in own if name not in given and name not in self.init_args}
            trained |= {name: own[name] for name in unsaid}
        one, other = self.resolved(trained, codec), self.resolved(own, self.codec)
        for name in own:
            if one[name] != other[name]:
                ours, theirs = ("", "") if trained[name] != own[name] else (f" of {here}", f" of {written}")
                seen = f"seen weights that were trained with {trained[name]!r}{theirs}, "
                seen += f"expected {own[name]!r}{ours} as here"
                raise ValueError(f"init_from {where}: {name}: {seen}: under another value they are something else")

    def weights_of(self, weights: Collection[str]) -> dict[str, Any]:
        """Options, as they are here, under which `weights` of the same names and shapes are something else."""
        return {}

    def resolved(self, options: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
        """What options come to where `codec` writes boxes: tokens as their texts, in the order of their rows."""
        encoder = replace(self.base_encoder, codec=codec)
        new = encoder.no_tokens_yet(options.get("new_tokens") or ())
        with warnings.catch_warnings():  # of texts that are several tokens: said where the rows are made
            warnings.simplefilter("ignore")
            rows = encoder.with_tokens(new)[0].row_tokens(options.get("train_token_rows"))
        return {**options, "new_tokens": new, "train_token_rows": list(dict.fromkeys([*rows, *new]))}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The parameters that train, by name, detached."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state_dict` gave; ValueError for missing, unknown or differently shaped weights."""
        load_weights(self.trainable_state_dict(), state)

    def train(self, mode: bool = True) -> "VLM":
        """Frozen modules stay in eval mode (dropout off), whatever the trainer sets."""
        super().train(mode)
        for module in self.backbone.modules():
            own = list(module.parameters(recurse=True))
            if own and not any(p.requires_grad for p in own):
                module.eval()
        return self


class PlainVLM(VLM):
    """The backbone itself; `train` lists glob patterns of the backbone's parameters that train ("*" is all of them).

    Recomputed blocks are also those of a vision tower, where they train. `new_tokens` become one token each (["codec"]:
    the codec's marks that the tokenizer lacks), in matrices that grow by their rows. `init_from` may be a checkpoint of
    an earlier stage in which other parameters trained: what differs from the base stays part of the trained state, so
    that the checkpoints of this stage hold both.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        train: Sequence[str] = ("*",),
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        init_from: str | None = None,
        quantization: str | None = None,
        new_tokens: Sequence[str] = (),
    ) -> None:
        if quantization is not None and train:
            raise ValueError(f"quantization: seen {quantization!r} for a base that trains, expected null or train: []")
        super().__init__(backbone, activation_checkpointing, attention, quantization)
        backbone, self.new_tokens = self.backbone, list(new_tokens)
        if texts := self.encoder.no_tokens_yet(new_tokens):
            self._add_tokens(texts)
        names = [name for name, _ in backbone.model.named_parameters()]
        for pattern in train:
            if not any(fnmatch(name, pattern) for name in names):
                raise ValueError(
                    f"train: seen pattern {pattern!r} that fits no parameter, expected names such as {names[0]}"
                )
        for name, parameter in backbone.model.named_parameters():
            named = any(fnmatch(name, pattern) for pattern in train)
            parameter.requires_grad = named and not any(fnmatch(name, pattern) for pattern in backbone.unused)
        if activation_checkpointing in (True, "block"):
            blocks = blocks_beside(backbone.decoder, backbone.model)
            recompute(block for block in blocks if any(p.requires_grad for p in block.parameters()))
        self.changed = {f"backbone.model.{name}" for name, p in backbone.model.named_parameters() if p.requires_grad}
        if init_from is not None:
            own, check = self._parameters_by_name(), self.check_options
            self.changed |= load_weights(own, init_from, self.identity(), required=(), check_options=check)

    def weights_of(self, weights: Collection[str]) -> dict[str, Any]:
        """Tokens, where their rows come; a stage before may have trained a projector alone."""
        matrices = (self.backbone.embedding.weight, self.backbone.head.weight)
        rows = [name for name, p in self.named_parameters() if any(p is matrix for matrix in matrices)]
        return {"new_tokens": self.new_tokens} if any(name in weights for name in rows) else {}

    @torch.no_grad()
    def _add_tokens(self, texts: list[str]) -> None:
        """A row for each text, which starts at the mean of the rows of the pieces that spelled it."""
        self.encoder, pieces = self.encoder.with_tokens(texts)
        self.backbone.encoder = self.encoder  # a saved backbone brings their texts beside their rows
        ids = self.encoder.token_ids(texts)
        if max(ids) >= len(self.backbone.embedding.weight):
            self.backbone.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        head = self.backbone.head
        rows = [self.backbone.embedding.weight, head.weight, *([] if head.bias is None else [head.bias])]
        for matrix in rows:  # where head and embedding are tied, one of them twice
            for token, spelled in zip(ids, pieces, strict=True):
                matrix[token] = matrix[spelled].float().mean(0)

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters()}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._parameters_by_name().items() if name in self.changed}

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.changed |= load_weights(self._parameters_by_name(), state, required=self.changed)


def _always(task: str, prompt: str) -> str:
    return task


class Recomputed(nn.Module):
    """Goes before a module's own class: what its forward keeps for backward is its input, the rest is redone.

    transformers' own checkpointing is off in eval mode, which is the mode of frozen layers and of GRPO.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=keep_routing, **kwargs)


def recomputed_parts(layers: Iterable[nn.Module], what: bool | str) -> list[nn.Module]:
    """The modules of decoder layers that are recomputed; ValueError for an unknown choice."""
    name = ("block" if what else "none") if isinstance(what, bool) else what
    if name not in ("none", "attention", "block"):
        raise ValueError(f"activation_checkpointing: seen {what!r}, expected none, attention or block")
    if name != "attention":
        return [*layers] if name == "block" else []
    found = [[child for name, child in layer.named_children() if "attn" in name] for layer in layers]
    if any(len(parts) != 1 for parts in found):
        raise ValueError("activation_checkpointing: seen 'attention' for layers without one, expected none or block")
    return [part for parts in found for part in parts]


def blocks_beside(decoder: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The blocks of a model beside its decoder's, a vision tower's: transformers says which are worth recomputing."""
    own = {*decoder.modules()}
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m not in own]


def recompute(layers: Iterable[nn.Module]) -> None:
    """Make modules `Recomputed`, in place: the class is wrapped, so that names of weights stay (as in FSDP2)."""
    for layer in layers:
        kind = type(layer)
        if not isinstance(layer, Recomputed):
            layer.__class__ = type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})


def branches(batch: Mapping[str, Any], isolated: bool) -> Tensor:
    """[B, T] the branch of every token; [A, B, T] with its record in joined rows, and its step where `isolated`."""
    valid_BT = batch["valid"]
    question_BT = batch.get("branch", torch.zeros_like(batch["input_ids"]))
    levels = [torch.where(valid_BT, question_BT, PAD_BRANCH)]
    if "record" in batch:
        levels.append(batch["record"])
    if isolated:
        step_QL = batch["step_ids"] + 1
        rows_Q, columns_QL = question_places(batch)
        step_BT = torch.zeros_like(question_BT)
        q_N, l_N = (step_QL > 0).nonzero(as_tuple=True)
        step_BT[rows_Q[q_N], columns_QL[q_N, l_N]] = step_QL[q_N, l_N]
        levels.append(torch.where(valid_BT, step_BT, PAD_BRANCH))
    return levels[-1] if "branch" not in batch else levels[0] if len(levels) == 1 else torch.stack(levels)


def by_question(routed: Routed, batch: Mapping[str, Any]) -> Routed:
    """A router's choices as of rows of their own: those of a prefix are repeated for each question behind it."""
    positions = batch["valid"].shape[1]
    flat_QL = batch["question_rows"][:, None] * positions + batch["columns"]
    flat_QL = torch.where(batch["question_valid"], flat_QL, -1)
    place_N, question_N = of_questions(routed.tokens_N, flat_QL, batch["valid"].numel())
    return Routed(routed.probs_NE[place_N], routed.ids_NK[place_N], question_N, routed.tokens_N[place_N])


def predictors(step_ids_BT: Tensor, isolated: bool) -> Tensor:
    """[B, T] the position whose hidden state predicts each token: the one before it.

    Isolated, the first token of a step is predicted from the last prompt position (step id -1) before it.
    """
    columns_T = torch.arange(step_ids_BT.shape[1], device=step_ids_BT.device)
    before_BT = (columns_T - 1).clamp(min=0).expand_as(step_ids_BT)
    if not isolated:
        return before_BT
    prompt_BT = torch.where(step_ids_BT < 0, columns_T, 0).cummax(1).values
    first_BT = torch.ones_like(step_ids_BT, dtype=torch.bool)
    first_BT[:, 1:] = step_ids_BT[:, 1:] != step_ids_BT[:, :-1]
    return torch.where(first_BT, prompt_BT, before_BT)
