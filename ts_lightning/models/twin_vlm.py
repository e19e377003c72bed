"""TWIST: a backbone with packages of experts beside its understanding experts. Legend as in `models.vlm`."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.tasks import GROUNDING, UNDERSTANDING
from ts_lightning.models.backbones.base import Backbone, notation
from ts_lightning.models.encode import Encoder
from ts_lightning.models.hub import on_disk
from ts_lightning.models.low_rank import LowRankExpert, LowRankMoE, experts_of, nearest, written_out
from ts_lightning.models.moe import MoE
from ts_lightning.models.package import (
    ROUTER,
    PackageOptions,
    check_base,
    is_package,
    load_weights,
    read_config,
    read_package,
    vlm_arguments,
    write_package,
)
from ts_lightning.models.routing import Routing, routing, rows_of
from ts_lightning.models.task_router import TaskRouter
from ts_lightning.models.twin import Alpha, Package, TokenRows, TwinExpert
from ts_lightning.models.vlm import VLM


class TwinExpertVLM(VLM):
    """Twin experts in the MLP slot of every `every`-th decoder layer; everything else is frozen.

    Args:
        backbone: The pre-trained vlm, or the folder of one.
        num_experts: Grounding experts of a layer; 1 is a plain MLP without router.
        top_k: Experts that answer a token in training.
        eval_top_k: The same in evaluation (None: `top_k`).
        every: Twin layers are 0, every, 2 * every, ...
        first_layer: The first twin layer.
        alpha_init: Start of the mixing weight; 1 is refused.
        alpha_scope: "global" (one scalar) or "layer".
        alpha_param: "raw" or "sigmoid".
        seed_experts: Which understanding experts seed the grounding experts (None: the first ones, in turn).
        train_token_rows: Tokens whose embedding and head rows get trainable deltas; ["codec"] names all that the
            codec writes coordinates with.
        new_tokens: Texts that become one token each, with trainable rows beside the frozen matrices; ["codec"] names
            the codec's marks that the tokenizer does not have.
        expert_rank: A grounding expert is its frozen understanding expert plus a difference of this rank; None is the
            paper's full copy.
        expert_targets: Names of the experts' linear layers that differ (with `expert_rank`; none: all).
        package: The skill that trains: the `task` of its records.
        packages: Folders of other packages by skill; they are installed beside it, frozen.
        activation_checkpointing: What is recomputed in backward: "none" (False), the "attention" of each decoder
            layer, or the "block" (True), the layer whole.
        attention: "auto", "sdpa", "flex" or "flash" (`models.attention`).
        quantization: Hold the frozen matrices of the decoder's layers in "int8" or "nf4" (with `expert_rank`).
        init_from: Checkpoint or package whose weights are loaded, and nothing else.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        num_experts: int = 2,
        top_k: int = 1,
        eval_top_k: int | None = None,
        every: int = 2,
        first_layer: int = 0,
        alpha_init: float = 0.5,
        alpha_scope: str = "global",
        alpha_param: str = "raw",
        seed_experts: Sequence[int] | None = None,
        train_token_rows: Sequence[str] | None = (),
        new_tokens: Sequence[str] = (),
        expert_rank: int | None = None,
        expert_targets: Sequence[str] = (),
        package: str = GROUNDING,
        packages: Mapping[str, str] | None = None,
        activation_checkpointing: bool | str = False,
        attention: str = "auto",
        quantization: str | None = None,
        init_from: str | None = None,
    ) -> None:
        if quantization is not None and expert_rank is None:
            raise ValueError(
                f"quantization: seen {quantization!r} for full copies of experts, expected expert_rank too"
            )
        options = PackageOptions(
            num_experts=num_experts,
            top_k=top_k,
            eval_top_k=eval_top_k,
            every=every,
            first_layer=first_layer,
            alpha_init=alpha_init,
            alpha_scope=alpha_scope,
            alpha_param=alpha_param,
            seed_experts=None if seed_experts is None else list(seed_experts),
            train_token_rows=list(train_token_rows or ()),
            new_tokens=list(new_tokens),
            expert_rank=expert_rank,
            expert_targets=list(expert_targets),
        )
        super().__init__(backbone, activation_checkpointing, attention, quantization)
        backbone = self.backbone
        backbone.requires_grad_(False)
        self.package = package
        self.options: dict[str, PackageOptions] = {}
        self.token_rows = nn.ModuleDict()
        self._add(package, options)
        init_from = None if init_from is None else str(on_disk(init_from))
        if init_from is not None and is_package(init_from):
            stored = read_config(init_from)
            given = PackageOptions.stored(stored["options"], init_from).plain()
            self.check_options({"init_args": {**given, "backbone": stored["backbone"]}}, init_from)
            self._read(init_from, package)
        elif init_from is not None:
            load_weights(self.trainable_state_dict(), init_from, self.identity(), check_options=self.check_options)
        for name, folder in (packages or {}).items():
            self.install(folder, name)

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: Backbone) -> "TwinExpertVLM":
        """The vlm of a folder made by `save_pretrained`, over its base; ValueError for another base or notation."""
        config = read_config(folder)
        _check_notation(config, backbone.encoder.codec, folder)
        return cls(backbone, **vlm_arguments(config), init_from=str(folder)).eval()

    def save_pretrained(
        self,
        folder: str | Path,
        scores: Mapping[str, float] | None = None,
        name: str | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        """Write one package (None: the one that trains); `scores` go into its card.

        `max_new_tokens` is what its answers need, for those who evaluate it.
        """
        name = name or self.package
        config = {
            "package": name,
            "base": self.identity(),
            "backbone": {"class_path": self.backbone.class_path, "init_args": self.backbone.init_args},
            "codec": notation(self.codec),
            "options": self.options[name].plain(),
            "max_new_tokens": max_new_tokens,
        }
        write_package(folder, self._as_computed(self.package_tensors(name)), config, scores or {})
        if self.task_router is not None and name in self.task_router.tasks:
            self.task_router.save(Path(folder) / ROUTER)

    def _as_computed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Over a base in 16 bits, what is multiplied in 16 bits: half the size, the same answers to the last bit."""
        dtype = self.backbone.embedding.weight.dtype
        exact = dtype not in (torch.bfloat16, torch.float16)
        whole = {name for name, tensor in tensors.items() if exact or not tensor.ndim or name.endswith("router.weight")}
        return {name: tensor if name in whole else tensor.to(dtype) for name, tensor in tensors.items()}

    def install(self, folder: str | Path, name: str | None = None) -> None:
        """Add a saved package, frozen, as the skill `name` (None: its own name)."""
        config = read_config(folder)
        name = name or config["package"]
        if name in self.options:
            raise ValueError(f"package {folder}: seen a second package {name!r}, expected one of another name")
        _check_notation(config, self.codec, folder)
        self._add(name, PackageOptions.stored(config["options"], folder))
        self._read(folder, name)
        for tensor in self.package_tensors(name).values():
            tensor.requires_grad_(False)
        self.train(self.training)

    def keep_copy(self, name: str) -> None:
        """Keep a frozen copy of the package that trains, as it is now; `package=name` puts it in that one's place."""
        if name in self.options:
            raise ValueError(f"package: seen one named {name!r}, expected another name: a copy is kept under it")
        copied: dict[int, Any] = {}  # one for all layers: those that share alpha share its copy
        for _, twin, package in self._packages(self.package):
            twin.packages[name] = copy.deepcopy(package, copied).requires_grad_(False)
        if self.package in self.token_rows:
            self.token_rows[name] = copy.deepcopy(self.token_rows[self.package]).requires_grad_(False)
        self.options[name] = self.options[self.package]
        self.train(self.training)

    def weights_of(self, weights: Collection[str]) -> dict[str, Any]:
        options = self.options[self.package]
        names = ["alpha_param", "new_tokens", "train_token_rows", "seed_experts"]
        return {name: getattr(options, name) for name in names[: 3 if options.expert_rank is None else 4]}

    def resolved(self, options: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
        """As there; `seed_experts` is each layer's, of each of its experts."""
        own = replace(self.options[self.package], seed_experts=options.get("seed_experts"))
        layers = [_seeds(experts_of(twin.understanding), own) for _, twin, _ in self._packages(self.package)]
        return super().resolved(options, codec) | {"seed_experts": [[n for n, _ in seeds] for seeds in layers]}

    def check_alpha(self, alpha: float | None) -> None:
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"alpha: seen {alpha}, expected 0 (grounding experts only) to 1 (the base)")

    def to_rank(self, rank: int | None) -> dict[str, float]:
        """Give the package that trains its nearest form of low rank, or full copies again (None), in place.

        Returns the relative error of each layer's difference by its name; that of full copies is their rounding.
        """
        if kind := self.identity().get("quantization"):
            raise ValueError(f"rank: seen experts over a base in {kind}, expected one that is not quantised")
        options = replace(self.options[self.package], expert_rank=rank, expert_targets=[])
        errors: dict[str, float] = {}
        for index, twin, package in self._packages(self.package):
            experts = []
            seeds = _seeds(experts_of(twin.understanding), options)
            for number, (expert, (source, base)) in enumerate(zip(_experts(package.experts), seeds, strict=True)):
                wide = base if rank is None else copy.deepcopy(base).float()  # not rounded on the way
                full, error = written_out(expert, wide) if package.low_rank else (expert, {})
                if rank is not None:
                    full, error = nearest(full, base, rank, source=source)
                errors |= {f"layers.{index}.experts.{number}.{name}": value for name, value in error.items()}
                experts.append(full)
            if isinstance(moe := package.experts, MoE):
                kind = MoE if rank is None else LowRankMoE
                package.experts = kind(nn.ModuleList(experts), moe.router, moe.top_k)
            else:
                package.experts = experts[0]
        self.options[self.package] = options
        return errors

    def remove_packages(self) -> None:
        """Put the understanding experts back into their slots: the backbone is its base again."""
        for layer in self.backbone.layers:
            if isinstance(slot := getattr(layer, self.backbone.mlp_name), TwinExpert):
                setattr(layer, self.backbone.mlp_name, slot.understanding)

    def _add(self, name: str, options: PackageOptions) -> None:
        """Give layers, tokens and encoder a new package."""
        if not name.isidentifier() or name == UNDERSTANDING:
            raise ValueError(f"package: seen {name!r}, expected the name of a skill: letters, digits and _")
        encoder, rows = self._with_skill(name, options)
        shared = Alpha(options.alpha_init, options.alpha_param)
        for layer in list(self.backbone.layers)[options.first_layer :: options.every]:
            slot = getattr(layer, self.backbone.mlp_name)
            twin = slot if isinstance(slot, TwinExpert) else TwinExpert(slot, nn.ModuleDict())
            full = options.expert_rank is None
            sources = (self.backbone.expert_seeds if full else experts_of)(twin.understanding)
            experts = grounding_experts(sources, options)
            alpha = Alpha(options.alpha_init, options.alpha_param) if options.alpha_scope == "layer" else shared
            twin.packages[name] = Package(experts, alpha, options.top_ks[1])
            setattr(layer, self.backbone.mlp_name, twin)
        if rows is not None:
            self.token_rows[name] = rows
        self.options[name] = options
        self.encoder = encoder

    def _with_skill(self, name: str, options: PackageOptions) -> tuple[Encoder, TokenRows | None]:
        """The encoder with one more skill, and rows for the tokens that train and for those that the base lacks."""
        weight, new = self.backbone.embedding.weight, self.encoder.of_task(0).no_tokens_yet(options.new_tokens)
        encoder, pieces = self.encoder.with_skill(name, new)
        own = encoder.of_task(len(encoder.skills))
        if spare := [token for token in own.shared_ids if token < len(weight)]:
            seen = f"seen {own.tokenizer.convert_ids_to_tokens(spare[0])!r} on a spare row of the base's matrices"
            raise ValueError(f"new_tokens of {name}: {seen} that another package uses, expected that one's new tokens")
        ids = own.token_ids(list(dict.fromkeys([*own.row_tokens(options.train_token_rows), *new])))
        if not ids:
            return encoder, None
        head = self.backbone.head.weight
        rows = TokenRows(ids, len(weight), weight.shape[1], head is weight)
        rows.start_from(dict(zip(own.token_ids(new), pieces, strict=True)), weight, head)
        return encoder, rows

    def package_tensors(self, name: str) -> dict[str, Tensor]:
        """The parameters of a package under names that depend neither on the package's nor on the backbone's."""
        tensors: dict[str, Tensor] = {}
        for index, _, package in self._packages(name):
            for key, parameter in package.experts.named_parameters():
                tensors[f"layers.{index}.experts.{key}"] = parameter
            scope = "" if self.options[name].alpha_scope == "global" else f"layers.{index}."
            tensors[f"{scope}alpha"] = package.alpha.value
        if name in self.token_rows:
            tensors |= {f"token_rows.{key}": p for key, p in self.token_rows[name].named_parameters()}
        return tensors

    def _read(self, folder: str | Path, name: str) -> None:
        """Copy a folder's weights into the package `name`; its task router is taken where it knows more tasks."""
        config, tensors = read_package(folder)
        check_base(config["base"], self.identity())
        load_weights({key: p.detach() for key, p in self.package_tensors(name).items()}, tensors)
        if (Path(folder) / ROUTER).is_dir():
            router = TaskRouter.load(Path(folder) / ROUTER)
            if self.task_router is None or set(self.task_router.tasks) < set(router.tasks):
                self.task_router = router

    def _packages(self, name: str) -> Iterator[tuple[int, TwinExpert, Package]]:
        """Each layer that has experts of the package: its number, its slot, the package's part of it."""
        for index, layer in enumerate(self.backbone.layers):
            slot = getattr(layer, self.backbone.mlp_name)
            if isinstance(slot, TwinExpert) and name in slot.packages:
                package = slot.packages[name]
                assert isinstance(package, Package)
                yield index, slot, package

    @property
    def twins(self) -> list[TwinExpert]:
        """The twin layers, first to last."""
        return [module for module in self.backbone.model.modules() if isinstance(module, TwinExpert)]

    def alphas(self) -> list[Tensor]:
        """Alpha of every layer of the package that trains."""
        return [package.alpha() for _, _, package in self._packages(self.package)]

    def log_values(self) -> dict[str, float]:
        return {"alpha": torch.stack(self.alphas()).mean().item()}

    def routing(
        self,
        batch: Mapping[str, Any],
        collect: bool = False,
        package: str | None = None,
        alpha: float | None = None,
        kept: dict[nn.Module, Any] | None = None,
    ) -> AbstractContextManager[Routing]:
        self.check_alpha(alpha)
        if package is not None and package not in self.options:
            raise ValueError(f"package: seen {package!r}, expected one of {', '.join(self.options)}")
        if package is None or package in self.skills:
            answered = package or self.skills
        else:  # a copy answers what the package that trains does
            answered = tuple(package if name == self.package else name for name in self.skills)
        return routing(batch["task"], batch["valid"], answered, alpha, collect, kept)

    def token_embeddings(self, ids_BT: Tensor, context: Routing) -> Tensor:
        in_base_BT = ids_BT < len(self.backbone.embedding.weight)
        embeds_BTH = super().token_embeddings(torch.where(in_base_BT, ids_BT, 0) if self._added else ids_BT, context)
        if self._added:
            embeds_BTH = torch.where(in_base_BT[..., None], embeds_BTH, 0)
        for name, rows in self._active_rows(context):
            embeds_BTH = rows.add_embeddings(embeds_BTH, ids_BT, context.positions_of(name))
        return embeds_BTH

    def logits(self, hidden_NH: Tensor, task_N: Tensor, context: Routing) -> Tensor:
        logits_NV = super().logits(hidden_NH, task_N, context)
        if self._added:
            logits_NV = torch.cat([logits_NV, logits_NV.new_full((len(logits_NV), self._added), -torch.inf)], 1)
        for name, rows in self._active_rows(context):
            logits_NV = rows.add_logits(logits_NV, hidden_NH, rows_of(name, context.packages, task_N))
        return logits_NV

    @property
    def _added(self) -> int:
        """Columns of the logits beyond the base's vocabulary."""
        return max((int(rows.added) for rows in self.token_rows.values()), default=0)  # type: ignore[arg-type]

    def _active_rows(self, context: Routing) -> list[tuple[str, TokenRows]]:
        named: Any = self.token_rows.items()
        return [] if context.alpha_override == 1 else [pair for pair in named if pair[0] in context.packages]


def _check_notation(config: Mapping[str, Any], codec: Codec, folder: str | Path) -> None:
    if config["codec"] != (expected := notation(codec)):
        raise ValueError(f"package {folder}: codec: seen {config['codec']}, expected {expected} as of the backbone")


def grounding_experts(sources: Sequence[nn.Module], options: PackageOptions) -> nn.Module:
    """Trainable experts of one layer, seeded by its understanding experts (by its MLP, where it is dense)."""
    seeds, rank = _seeds(sources, options), options.expert_rank
    if rank is None:
        experts = [copy.deepcopy(base).requires_grad_(True).train() for _, base in seeds]
    else:
        experts = [LowRankExpert(base, rank, options.expert_targets, source) for source, base in seeds]
    if len(experts) == 1:
        return experts[0]
    first = next(module for module in seeds[0][1].modules() if hasattr(module, "in_features"))
    return (MoE if rank is None else LowRankMoE).of(nn.ModuleList(experts), first, options.top_ks[0])


def _seeds(sources: Sequence[nn.Module], options: PackageOptions) -> list[tuple[int, nn.Module]]:
    """Number and module of the understanding expert that each grounding expert starts from."""
    seeds = list(range(len(sources))) if options.seed_experts is None else options.seed_experts
    if bad := [i for i in seeds if not 0 <= i < len(sources)]:
        raise ValueError(f"seed_experts: seen {bad[0]}, expected 0 to {len(sources) - 1}")
    return [(seeds[e % len(seeds)], sources[seeds[e % len(seeds)]]) for e in range(options.num_experts)]


def _experts(experts: nn.Module) -> list[Any]:
    return list(experts.experts) if isinstance(experts, MoE) else [experts]
