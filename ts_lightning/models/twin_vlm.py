"""TWIST: a backbone with grounding experts beside its understanding experts. Legend as in `models.vlm`."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ts_lightning.models.backbones.base import Backbone
from ts_lightning.models.moe import MoE
from ts_lightning.models.package import load_weights
from ts_lightning.models.routing import Routing
from ts_lightning.models.token_rows import TokenRows
from ts_lightning.models.twin_expert import Alpha, Package, TwinExpert
from ts_lightning.models.vlm import VLM


class TwinExpertVLM(VLM):
    """Twin experts in the MLP slot of every `every`-th decoder layer; everything else is frozen.

    Args:
        backbone: The pre-trained vlm.
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
        activation_checkpointing: Recompute each decoder layer in backward.
        init_from: Checkpoint or package whose weights are loaded, and nothing else.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_experts: int = 2,
        top_k: int = 1,
        eval_top_k: int | None = None,
        every: int = 2,
        first_layer: int = 0,
        alpha_init: float = 0.5,
        alpha_scope: str = "global",
        alpha_param: str = "raw",
        seed_experts: Sequence[int] | None = None,
        train_token_rows: Sequence[str] = (),
        activation_checkpointing: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__(backbone, activation_checkpointing)
        if alpha_scope not in ("global", "layer"):
            raise ValueError(f"alpha_scope: seen {alpha_scope!r}, expected 'global' or 'layer'")
        for name, value in (("num_experts", num_experts), ("every", every), ("top_k", top_k)):
            if value < 1:
                raise ValueError(f"{name}: seen {value}, expected at least 1")
        backbone.requires_grad_(False)
        self.top_k, self.eval_top_k = min(top_k, num_experts), min(eval_top_k or top_k, num_experts)
        shared = Alpha(alpha_init, alpha_param)
        for layer in list(backbone.layers)[first_layer::every]:
            understanding = getattr(layer, backbone.mlp_name)
            alpha = shared if alpha_scope == "global" else Alpha(alpha_init, alpha_param)
            experts = grounding_experts(understanding, num_experts, self.top_k, seed_experts)
            packages = nn.ModuleDict({self.package: Package(experts, alpha)})
            setattr(layer, backbone.mlp_name, TwinExpert(understanding, packages))
        self.token_rows = self._make_token_rows(train_token_rows)
        if init_from is not None:
            load_weights(self.trainable_state_dict(), init_from, self.identity())

    def _make_token_rows(self, texts: Sequence[str]) -> TokenRows | None:
        if not texts:
            return None
        named = [t for text in texts for t in (self.codec.coordinate_tokens() if text == "codec" else [text])]
        vocab_size, hidden_size = self.backbone.embedding.weight.shape
        tied = self.backbone.head.weight is self.backbone.embedding.weight
        ids = self.backbone.encoder.token_ids(list(dict.fromkeys(named)))
        return TokenRows(ids, vocab_size, hidden_size, tied)

    @property
    def twins(self) -> list[TwinExpert]:
        """The twin layers, first to last."""
        return [module for module in self.backbone.model.modules() if isinstance(module, TwinExpert)]

    def alphas(self) -> list[Tensor]:
        """Alpha of every twin layer."""
        packages = [twin.packages[self.package] for twin in self.twins]
        return [package.get_submodule("alpha")() for package in packages]

    def log_values(self) -> dict[str, float]:
        return {"alpha": torch.stack(self.alphas()).mean().item()}

    def token_embeddings(self, ids_BT: Tensor, context: Routing) -> Tensor:
        embeds_BTH = super().token_embeddings(ids_BT, context)
        if self.token_rows is None or self.alpha_override == 1:
            return embeds_BTH
        return self.token_rows.add_embeddings(embeds_BTH, ids_BT, context.skill_BT)

    def logits(self, hidden_NH: Tensor, skill_N: Tensor) -> Tensor:
        logits_NV = super().logits(hidden_NH, skill_N)
        if self.token_rows is None or self.alpha_override == 1:
            return logits_NV
        return self.token_rows.add_logits(logits_NV, hidden_NH, skill_N)

    def train(self, mode: bool = True) -> "TwinExpertVLM":
        """Switch modes; the grounding experts use `top_k` in training and `eval_top_k` in evaluation."""
        super().train(mode)
        for twin in self.twins:
            if isinstance(moe := twin.packages[self.package].experts, MoE):
                moe.top_k = self.top_k if mode else self.eval_top_k
        return self


def grounding_experts(
    understanding: nn.Module, num_experts: int, top_k: int, seeds: Iterable[int] | None = None
) -> nn.Module:
    """Trainable copies of the understanding experts of one layer (of its MLP, where it is dense)."""
    sources = list(understanding.experts) if isinstance(understanding, MoE) else [understanding]
    if seeds is not None:
        if bad := [i for i in seeds if not 0 <= i < len(sources)]:
            raise ValueError(f"seed_experts: seen {bad[0]}, expected 0 to {len(sources) - 1}")
        sources = [sources[i] for i in seeds]
    moe = MoE.copies(sources, num_experts, top_k)
    return moe if num_experts > 1 else moe.experts[0]
