"""The twin layer: frozen understanding experts beside a skill's trainable ones, mixed by alpha.

Legend: B rows, T positions, H hidden size, N real tokens of the rows that a package answers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ts_lightning.models.moe import STATIC_TOKENS
from ts_lightning.models.routing import Routing, current_routing
from ts_lightning.models.zero_gradients import with_zero_gradients


class Alpha(nn.Module):
    """The mixing weight; 1 = understanding only. `raw` learns it as it is, `sigmoid` learns its logit.

    Share one object between layers for one scalar. A start of 1 is refused: the skill would get no gradient.
    """

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
    """What one skill adds to one layer: `experts` (an MoE, or one MLP) and `alpha`."""

    def __init__(self, experts: nn.Module, alpha: Alpha) -> None:
        super().__init__()
        self.experts = experts
        self.alpha = alpha


class TwinExpert(nn.Module):
    """Equations 5-6 in an MLP slot: `alpha * IU(h) + (1 - alpha) * VG(h)` where the row's task is a skill, else IU(h).

    The residual is outside. `routing(...)` says which of `packages` (name -> `Package`) answers each row; outside of it
    the layer is its understanding expert, and so it is for a package that this layer has no experts of. IU always sees
    the whole batch, so that understanding rows of a batch of their own are bitwise those of the untouched layer; VG
    sees the real tokens of its own rows only. Every trainable parameter of every package gets a gradient, zeros where
    it had no part.
    """

    def __init__(self, understanding: nn.Module, packages: nn.ModuleDict) -> None:
        super().__init__()
        self.understanding = understanding.requires_grad_(False).eval()
        self.packages = packages

    def forward(self, h_BTH: Tensor) -> Tensor:
        """Return the layer's output, [B, T, H] as `h_BTH`."""
        context = current_routing()
        iu_BTH = self.understanding(h_BTH)
        if context is None:
            return iu_BTH
        if context.valid_BT.shape != h_BTH.shape[:2]:
            seen = f"{tuple(context.valid_BT.shape)} for hidden states {tuple(h_BTH.shape)}"
            raise ValueError(f"valid_BT: seen {seen}, expected one entry per position")
        if h_BTH.is_cuda and context.valid_BT.numel() <= STATIC_TOKENS and not torch.is_grad_enabled():
            return self._static(iu_BTH, h_BTH, context)
        if context.alpha_override == 1:
            return _zero_gradients(iu_BTH, self.packages)
        out_TH, iu_TH, h_TH = (x_BTH.flatten(0, 1) for x_BTH in (iu_BTH, iu_BTH, h_BTH))
        used = []
        for name, tokens_N in context.tokens.items():
            if name not in self.packages:
                continue
            package: Package = self.packages[name]  # type: ignore[assignment]
            used.append(package)
            with context.giving(tokens_N):
                if len(tokens_N) == len(h_TH):
                    out_TH = _mix(iu_TH, package.experts(h_TH), package.alpha, context)
                else:
                    iu_NH, h_NH = (x_TH.index_select(0, tokens_N) for x_TH in (iu_TH, h_TH))
                    mixed_NH = _mix(iu_NH, package.experts(h_NH), package.alpha, context)
                    out_TH = out_TH.index_copy(0, tokens_N, mixed_NH)
        return _zero_gradients(out_TH.view_as(iu_BTH), self.packages, used, context)

    def _static(self, iu_BTH: Tensor, h_BTH: Tensor, context: Routing) -> Tensor:
        """Every package on every token: no shape depends on the rows and the host never waits, for decoding."""
        out_BTH = iu_BTH
        for name in dict.fromkeys(context.packages):
            if name in self.packages:
                package: Package = self.packages[name]  # type: ignore[assignment]
                mixed_BTH = _mix(iu_BTH, package.experts(h_BTH), package.alpha, context)
                out_BTH = torch.where(context.positions_of(name)[..., None], mixed_BTH, out_BTH)
        return out_BTH


def _mix(iu: Tensor, vg: Tensor, alpha_of_package: Alpha, context: Routing) -> Tensor:
    alpha = alpha_of_package().to(iu.dtype) if context.alpha_override is None else context.alpha_override
    return alpha * iu + (1 - alpha) * vg


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
