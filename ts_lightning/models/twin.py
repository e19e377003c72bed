"""What a package adds to a model: experts and alpha in twin layers, rows of tokens in embedding and head.

Legend: B rows, T positions, H hidden size, N real tokens of the rows that a package answers, V vocabulary, R rows of
tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ts_lightning.models.low_rank import LowRankExpert, LowRankMoE, can_share, experts_of, shared_products
from ts_lightning.models.moe import MoE, is_static
from ts_lightning.models.routing import Routing, current_routing
from ts_lightning.models.zero_gradients import with_zero_gradients


class Alpha(nn.Module):
    """The mixing weight; 1 = understanding only. `raw` learns it as it is, `sigmoid` learns its logit.

    Share one object between layers for one scalar. A start of 1 is refused: the skill would get no gradient.
    """

    optimizer_group = "alpha"

    def __init__(self, init: float = 0.5, form: str = "raw") -> None:
        super().__init__()
        if form not in ("raw", "sigmoid"):
            raise ValueError(f"alpha_param: seen {form!r}, expected 'raw' or 'sigmoid'")
        if not (0 <= init < 1 if form == "raw" else 0 < init < 1):
            raise ValueError(f"alpha_init: seen {init}, expected a value from 0 to below 1 (above 0 for 'sigmoid')")
        self.form = form
        self.value = nn.Parameter(torch.tensor(init if form == "raw" else math.log(init / (1 - init))))

    def forward(self) -> Tensor:
        """Return alpha as a scalar tensor."""
        return self.value if self.form == "raw" else self.value.sigmoid()


class Package(nn.Module):
    """What one skill adds to one layer: `experts` (an MoE, or one MLP) and `alpha`.

    The experts are whole (an `MoE` or an MLP) or of low rank over the understanding ones (`models.low_rank`). An MoE's
    own `top_k` experts answer a token in training, in evaluation `eval_top_k` (None: as many).
    """

    alpha: Alpha

    def __init__(self, experts: nn.Module, alpha: Alpha, eval_top_k: int | None = None) -> None:
        super().__init__()
        self.experts = experts
        self.alpha = alpha
        self.eval_top_k = eval_top_k

    @property
    def low_rank(self) -> bool:
        """Whether the experts need the understanding ones."""
        return isinstance(self.experts, LowRankMoE | LowRankExpert)

    @property
    def top_k(self) -> int | None:
        """Experts of a token in this mode; None is the MoE's own number."""
        return None if self.training else self.eval_top_k

    def forward(
        self,
        h: Tensor,
        iu: Tensor,
        understanding: nn.Module,
        alpha: float | None = None,
        tokens_N: Tensor | None = None,
    ) -> Tensor:
        """Return alpha * iu + (1 - alpha) * experts(h), [..., H] as `h` and `iu`; `alpha` in place of the learned one.

        tokens_N: as in `MoE.forward`.
        """
        if isinstance(self.experts, LowRankMoE):
            vg = self.experts(h, understanding, self.top_k, tokens_N)
        elif isinstance(self.experts, LowRankExpert):
            vg = self.experts(h, experts_of(understanding)[self.experts.source])
        elif isinstance(self.experts, MoE):
            vg = self.experts(h, self.top_k, tokens_N)
        else:
            vg = self.experts(h)
        mixing = self.alpha().to(iu.dtype) if alpha is None else alpha
        return torch.lerp(vg, iu, mixing)


class TwinExpert(nn.Module):
    """TWIST eq. 5-6 in an MLP slot: `alpha * IU(h) + (1 - alpha) * VG(h)` where the row's task is a skill, else IU(h).

    h is the slot's input, IU the understanding experts, VG the package's; the residual is outside. `routing(...)` says
    which of `packages` (name -> `Package`) answers each row; outside of it the layer is its understanding expert, and
    so it is for a package that this layer has no experts of. IU always sees the whole batch, so that understanding
    rows of a batch of their own are bitwise those of the untouched layer; VG sees the real tokens of its own rows only.
    Every trainable parameter of every package gets a gradient, zeros where it had no part.
    """

    def __init__(self, understanding: nn.Module, packages: nn.ModuleDict) -> None:
        super().__init__()
        self.understanding = understanding.requires_grad_(False).eval()
        self.packages = packages

    def forward(self, h_BTH: Tensor) -> Tensor:
        """Return the layer's output, [B, T, H] as `h_BTH`."""
        context = current_routing()
        if context is None:
            return self.understanding(h_BTH)
        if context.valid_BT.shape != h_BTH.shape[:2]:
            seen = f"{tuple(context.valid_BT.shape)} for hidden states {tuple(h_BTH.shape)}"
            raise ValueError(f"valid_BT: seen {seen}, expected one entry per position")
        if is_static(h_BTH.flatten(0, 1)):
            return self._static(self.understanding(h_BTH), h_BTH, context)
        if context.alpha_override == 1:
            return _zero_gradients(self.understanding(h_BTH), self.packages)
        answering: list[tuple[Any, Tensor]] = [
            (self.packages[name], tokens_N) for name, tokens_N in context.tokens.items() if name in self.packages
        ]
        h_TH = h_BTH.flatten(0, 1)
        if len(answering) == 1 and answering[0][0].low_rank and can_share(self.understanding):
            ((package, tokens_N),) = answering
            alpha = package.alpha() if context.alpha_override is None else context.alpha_override
            out_TH = shared_products(h_TH, self.understanding, package.experts, alpha, tokens_N, package.top_k)
        else:
            out_TH = iu_TH = self.understanding(h_BTH).flatten(0, 1)
            for package, tokens_N in answering:
                if len(tokens_N) == len(h_TH):
                    out_TH = package(h_TH, iu_TH, self.understanding, context.alpha_override, tokens_N)
                else:
                    h_NH, iu_NH = (x_TH.index_select(0, tokens_N) for x_TH in (h_TH, iu_TH))
                    mixed_NH = package(h_NH, iu_NH, self.understanding, context.alpha_override, tokens_N)
                    out_TH = out_TH.index_copy(0, tokens_N, mixed_NH)
        return _zero_gradients(out_TH.view_as(h_BTH), self.packages, [package for package, _ in answering], context)

    def _static(self, iu_BTH: Tensor, h_BTH: Tensor, context: Routing) -> Tensor:
        """Every package on every token: no shape depends on the rows and the host never waits, for decoding."""
        out_BTH = iu_BTH
        for name in dict.fromkeys(context.packages):
            if name in self.packages:
                mixed_BTH = self.packages[name](h_BTH, iu_BTH, self.understanding, context.alpha_override)
                out_BTH = torch.where(context.positions_of(name)[..., None], mixed_BTH, out_BTH)
        return out_BTH


def _zero_gradients(
    output: Tensor, packages: nn.ModuleDict, used: Sequence[nn.Module] = (), context: Routing | None = None
) -> Tensor:
    """Return `output`, bitwise, as a function of every trainable parameter that had no part in it."""
    if not torch.is_grad_enabled():
        return output
    forced = context is not None and context.alpha_override is not None
    parts = [package.get_submodule("experts") if forced else package for package in used]
    took_part = {parameter for part in parts for parameter in part.parameters()}
    return with_zero_gradients(output, (p for p in packages.parameters() if p not in took_part))


class TokenRows(nn.Module):
    """Deltas for the rows of existing tokens, and whole rows for tokens that the base's matrices do not have.

    `ids` are the tokens; those from `vocab_size` on are new, the others exist. The rows act where the package answers:
    elsewhere an existing token is as in the base, and a new one can't be said (its logit is -inf). With tied matrices
    one row serves input and output.
    """

    ids: Tensor
    slot_V: Tensor

    def __init__(self, ids: Sequence[int], vocab_size: int, hidden_size: int, tied: bool) -> None:
        super().__init__()
        if len(set(ids)) != len(ids):
            raise ValueError("train_token_rows: seen a token twice, expected different tokens")
        self.added = max(0, max(ids) + 1 - vocab_size)
        slot_V = torch.full((vocab_size + self.added,), -1)
        slot_V[list(ids)] = torch.arange(len(ids))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.register_buffer("slot_V", slot_V, persistent=False)
        self.embed = nn.Parameter(torch.zeros(len(ids), hidden_size))
        self.output = None if tied else nn.Parameter(torch.zeros(len(ids), hidden_size))

    @torch.no_grad()
    def start_from(self, pieces: Mapping[int, Sequence[int]], embedding: Tensor, head: Tensor) -> None:
        """Start each new token at the mean of the base's rows of the `pieces` that spell it, by the token's id."""
        matrices = [(self.embed, embedding), *([] if self.output is None else [(self.output, head)])]
        for row, token in enumerate(self.ids.tolist()):
            for own, weight in matrices if token in pieces else ():
                own[row] = weight[list(pieces[token])].float().mean(0)
                if token < len(weight):  # a spare row, which nothing trained: ours is added to it
                    own[row] -= weight[token].float()

    def add_embeddings(self, embeds_BTH: Tensor, ids_BT: Tensor, rows_BT: Tensor) -> Tensor:
        """Embeddings plus these rows where the package answers (`rows_BT` True)."""
        slot_BT = torch.where(rows_BT, self.slot_V[ids_BT.clamp(max=len(self.slot_V) - 1)], -1)
        delta_BTH = F.embedding(slot_BT.clamp(min=0), self.embed).to(embeds_BTH.dtype)
        return torch.where((slot_BT >= 0)[..., None], embeds_BTH + delta_BTH, embeds_BTH)

    def add_logits(self, logits_NV: Tensor, hidden_NH: Tensor, rows_N: Tensor) -> Tensor:
        """Logits plus these rows' part where the package answers; other rows keep their bits.

        Columns of new tokens have to be there, at -inf.
        """
        rows_RH = self.embed if self.output is None else self.output
        delta_NR = F.linear(hidden_NH, rows_RH.to(hidden_NH.dtype)).to(logits_NV.dtype)
        new_R = self.ids >= len(self.slot_V) - self.added
        base_NR = torch.where(new_R, 0, logits_NV[:, self.ids])
        changed_NV = logits_NV.index_copy(1, self.ids, base_NR + delta_NR)
        return torch.where(rows_N[:, None], changed_NV, logits_NV)
