"""Grounding experts of low rank: a frozen understanding expert plus a small difference of its own.

The frozen products serve both sides. With z = W1 h + b1, computed once for a token and an understanding expert, and the
differences d1(h) = B1 A1 h + c1 and d2(g) = B2 A2 g + c2 of a grounding expert over it, TWIST eq. 6 is

    alpha u (W2 act(z) + b2) + (1 - alpha) v (W2 act(z + d1(h)) + b2 + d2(act(z + d1(h))))
      = W2 (alpha u act(z) + (1 - alpha) v act(z + d1(h))) + (alpha u + (1 - alpha) v) b2 + (1 - alpha) v d2(...)

for the weights u and v that the two routers give: a twin layer has the frozen layer's products and thin ones.

Legend: T tokens, H hidden size, F expert size, r rank, A understanding experts, G grounding experts, K chosen, n tokens
of one understanding expert, m tokens of one grounding expert.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ts_lightning.models.experts import Activation, expert_form, hidden, piece_backward, pieces, resolve
from ts_lightning.models.moe import MoE, is_static, moe_loop, moe_static, scattered
from ts_lightning.models.quantization import QuantizedLinear


class LowRank(nn.Module):
    """d(x) = B A x + c, the difference of one linear layer: A [r, in] is random, B [out, r] and c start at zero.

    c stands where the layer has a bias. `rank` is at most the smaller side of the layer's matrix.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: Any, rank: int) -> None:
        super().__init__()
        size_in, size_out = linear.in_features, linear.out_features
        if not 1 <= rank <= min(size_in, size_out):
            raise ValueError(f"expert_rank: seen {rank}, expected 1 to {min(size_in, size_out)}, the smaller side")
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": getattr(linear, "dtype", linear.weight.dtype)}
        self.a = nn.Parameter(torch.empty(rank, size_in, **made))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.b = nn.Parameter(torch.zeros(size_out, rank, **made))
        self.bias = None if linear.bias is None else nn.Parameter(torch.zeros(size_out, **made))

    def forward(self, x: Tensor) -> Tensor:
        """Return d(x), [..., out] of [..., in]."""
        return F.linear(F.linear(x, self.a), self.b, self.bias)


class LowRankExpert(nn.Module):
    """An understanding expert plus differences to its linear layers, under the names that these have there.

    `source` numbers the expert among the understanding ones; its module is given to every call, and is no part of this.
    `targets` names the layers that differ (none: all).
    """

    def __init__(self, base: nn.Module, rank: int, targets: Sequence[str] = (), source: int = 0) -> None:
        super().__init__()
        form = expert_form(base, plain=False)
        if form is None:
            raise ValueError(f"expert_rank: seen experts of {type(base).__name__}, expected fc1, fc2 or gate, up, down")
        names = (*form.inputs, form.output)
        if unknown := [name for name in targets if name not in names]:
            raise ValueError(f"expert_targets: seen {unknown[0]!r}, expected some of {', '.join(names)}")
        self.source = source
        for name in targets or names:
            setattr(self, name, LowRank(getattr(base, name), rank))

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        """Return the expert's output, [..., H] as `x`: the readable form, for a base of any linear layers."""
        form: Any = expert_form(base, plain=False)
        z, *up = (self.changed(name, x, base) for name in form.inputs)
        hidden_F = getattr(base, form.activation)(z)
        return self.changed(form.output, hidden_F * up[0] if up else hidden_F, base)

    def changed(self, name: str, x: Tensor, base: nn.Module) -> Tensor:
        """The base's layer plus the difference to it."""
        y = getattr(base, name)(x)
        difference = getattr(self, name, None)
        return y if difference is None else y + difference(x).to(y.dtype)


@torch.no_grad()
def written_out(expert: LowRankExpert, base: nn.Module) -> tuple[nn.Module, dict[str, float]]:
    """The full copy nearest to `expert` over `base` in the base's dtype, and |stored - (W + B A)| / |B A| by layer.

    Each weight is W + B A, each bias b + c, added in fp32 and rounded once: 16 bits lose much of a small difference.
    """
    copied, errors = copy.deepcopy(base).requires_grad_(True).train(), {}
    for name, difference in expert.named_children():
        linear: Any = getattr(copied, name)
        exact = torch.promote_types(linear.weight.dtype, torch.float32)
        d = difference.b.to(exact) @ difference.a.to(exact)  # type: ignore[operator]
        whole = linear.weight.to(exact) + d
        linear.weight.copy_(whole)
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.to(exact) + difference.bias.to(exact))  # type: ignore[operator]
        errors[name] = float((linear.weight.to(exact) - whole).norm() / d.norm().clamp(min=1e-30))
    return copied, errors


@torch.no_grad()
def nearest(
    full: nn.Module, base: nn.Module, rank: int, targets: Sequence[str] = (), source: int = 0
) -> tuple[LowRankExpert, dict[str, float]]:
    """The expert over `base` that is nearest to a full copy, and |D - B A| / |D| of each layer's difference D.

    By the first `rank` singular values: B = U sqrt(S), A = sqrt(S) V^T. A layer outside of `targets` has error 1.
    """
    expert, errors = LowRankExpert(base, rank, targets, source), {}
    form: Any = expert_form(base, plain=False)
    for name in (*form.inputs, form.output):
        whole, own, difference = getattr(full, name), getattr(base, name), getattr(expert, name, None)
        d = whole.weight.float() - own.weight.float()
        left = d
        if difference is not None:
            u, s, vt = torch.linalg.svd(d, full_matrices=False)
            root = s[:rank].sqrt()
            difference.b.copy_(u[:, :rank] * root)
            difference.a.copy_(root[:, None] * vt[:rank])
            left = d - difference.b.float() @ difference.a.float()
            if own.bias is not None:
                difference.bias.copy_(whole.bias - own.bias)
        errors[name] = float(left.norm() / d.norm().clamp(min=1e-30))
    return expert, errors


class LowRankMoE(MoE):
    """A mixture of `LowRankExpert`s: y = sum_k w_k expert_k(x); the understanding experts are given to every call."""

    def forward(  # type: ignore[override]
        self, x: Tensor, understanding: nn.Module, top_k: int | None = None, tokens_N: Tensor | None = None
    ) -> Tensor:
        """Return the mixture for hidden states [..., H]; `top_k` and `tokens_N` as in `MoE.forward`."""
        x_TH, bases = x.reshape(-1, x.shape[-1]), experts_of(understanding)
        experts: Any = [partial(expert, base=bases[expert.source]) for expert in self.experts]  # type: ignore[index]
        path = moe_static if is_static(x_TH) else moe_loop
        return path(x_TH, *self.chosen(x_TH, top_k, tokens_N), experts).view_as(x)


def experts_of(understanding: nn.Module) -> list[nn.Module]:
    """The understanding experts of a layer; a dense MLP is its only one."""
    return list(understanding.experts) if isinstance(understanding, MoE) else [understanding]


def can_share(understanding: nn.Module) -> bool:
    """Whether `shared_products` knows these experts: linear layers, plain or quantised, in one of the known forms."""
    for base in experts_of(understanding):
        form = expert_form(base, plain=False)
        layers = [] if form is None else [getattr(base, name) for name in (*form.inputs, form.output)]
        if not layers or not all(type(layer) in (nn.Linear, QuantizedLinear) for layer in layers):
            return False
    return True


def shared_products(
    x_TH: Tensor,
    understanding: nn.Module,
    grounding: nn.Module,
    alpha: Tensor | float,
    tokens_N: Tensor,
    top_k: int | None = None,
) -> Tensor:
    """TWIST eq. 5-6 of a layer, with each frozen product computed once: alpha * IU + (1 - alpha) * VG at `tokens_N`.

    Other tokens get IU alone. grounding: a `LowRankMoE` or a `LowRankExpert`; tokens_N: flat positions of the package's
    tokens. Computes in the autocast dtype if autocast is on, else in the dtype of `x_TH`.
    """
    bases, device = experts_of(understanding), x_TH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TH.dtype
    exact = torch.promote_types(x_TH.dtype, torch.float32)
    if isinstance(understanding, MoE):
        u_TA, chosen_TA = scattered(*understanding.chosen(x_TH), len(bases))
    else:
        u_TA, chosen_TA = x_TH.new_ones(len(x_TH), 1, dtype=exact), None
    is_N1 = torch.zeros(len(x_TH), 1, dtype=torch.bool, device=x_TH.device).index_fill_(0, tokens_N, True)
    if isinstance(grounding, LowRankMoE):
        experts: list[Any] = list(grounding.experts)
        everything = len(tokens_N) == len(x_TH)
        x_NH = x_TH if everything else x_TH.index_select(0, tokens_N)
        v_NG, chosen_NG = scattered(*grounding.chosen(x_NH, top_k, tokens_N), len(experts))
        v_TG = v_NG if everything else v_NG.new_zeros(len(x_TH), len(experts)).index_copy(0, tokens_N, v_NG)
        chosen_TG = chosen_NG if everything else chosen_NG.new_zeros(v_TG.shape).index_copy(0, tokens_N, chosen_NG)
    else:
        experts, v_TG, chosen_TG = [grounding], is_N1.to(exact), is_N1
    mixing = alpha.to(exact) if isinstance(alpha, Tensor) else alpha
    u_TA, v_TG = torch.where(is_N1, mixing * u_TA, u_TA), (1 - mixing) * v_TG
    sources = [int(expert.source) for expert in experts]
    if chosen_TA is not None:
        for g, source in enumerate(sources):  # a grounding expert asks for its source's product
            chosen_TA[:, source] |= chosen_TG[:, g]
    form: Any = expert_form(bases[0], plain=False)
    parameters: list[Tensor | None] = []
    quantized: dict[int, QuantizedLinear] = {}
    for a, base in enumerate(bases):
        own = [expert for expert, source in zip(experts, sources, strict=True) if source == a]
        for name in (*form.inputs, form.output):
            linear = getattr(base, name)
            if isinstance(linear, QuantizedLinear):
                quantized[len(parameters)] = linear
            weight = None if isinstance(linear, QuantizedLinear) else linear.weight
            parameters += [weight, linear.bias, *_side_by_side([getattr(e, name, None) for e in own])]
    activation = resolve(getattr(bases[0], form.activation), device)
    plan = _Plan(len(form.inputs), sources, activation, chosen_TA, chosen_TG, quantized)
    return _SharedProducts.apply(x_TH.to(dtype), u_TA, v_TG, plan, *parameters)


def _side_by_side(differences: list[LowRank | None]) -> tuple[Tensor | None, Tensor | None]:
    """A [G r, in], and B with c behind it [out, G r + G] (or [out, G r]), of all experts over one: one thin product."""
    if not differences or differences[0] is None:
        return None, None
    whole: Any = differences
    ends = [d.bias[:, None] for d in whole if d.bias is not None]
    return torch.cat([d.a for d in whole]), torch.cat([*(d.b for d in whole), *ends], 1)


class _Plan:
    """Which rows each frozen product has, and which of them the grounding experts over it take.

    `rows[a]` are the tokens of an understanding expert, None is all of them in their order. A grounding expert's token
    stands at `places[a]` among them (in rising order, None is all), with its expert one-hot in `which[a]` [m, G of a],
    and its weight at `flat[a]` of v_TG. `quantized[i]` is the layer whose matrix takes the place of parameter i.
    """

    def __init__(
        self,
        inputs: int,
        sources: list[int],
        activation: Activation,
        chosen_TA: Tensor | None,
        chosen_TG: Tensor,
        quantized: dict[int, QuantizedLinear],
    ) -> None:
        self.inputs, self.activation, self.quantized = inputs, activation, quantized
        count, num_own = chosen_TG.shape
        self.rows: list[Tensor | None] = [None] if chosen_TA is None else list(_columns(chosen_TA))
        self.places: list[Tensor | None] = []
        self.which: list[Tensor] = []
        self.flat: list[Tensor] = []
        for a, rows_n in enumerate(self.rows):
            mine = [g for g, source in enumerate(sources) if source == a]
            chosen_TM = chosen_TG[:, mine]
            tokens_m, own_m = chosen_TM.nonzero(as_tuple=True)
            places_m = tokens_m if chosen_TA is None else (chosen_TA[:, a].cumsum(0) - 1).index_select(0, tokens_m)
            every = len(places_m) == (count if rows_n is None else len(rows_n)) and len(mine) > 0
            # as many as rows are all rows, unless a token has several experts
            every = every and not (len(mine) > 1 and bool((chosen_TM.sum(1) > 1).any()))
            self.places.append(None if every else places_m)
            self.which.append(F.one_hot(own_m, max(1, len(mine))))
            numbers = torch.tensor(mine or [0], device=own_m.device)
            self.flat.append(tokens_m * num_own + numbers[own_m])

    def pieces(self, a: int, pre_nF: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Rows of `a` that stay in the cache together: they, the grounding experts' among them, and their places."""
        cuts, places_m = [part.start for part in pieces(pre_nF)] + [len(pre_nF)], self.places[a]
        bounds = cuts if places_m is None else torch.searchsorted(places_m, places_m.new_tensor(cuts)).tolist()
        for (start, end), (first, last) in zip(pairwise(cuts), pairwise(bounds), strict=True):
            yield slice(start, end), slice(first, last), None if places_m is None else places_m[first:last] - start


def _columns(chosen_TE: Tensor) -> list[Tensor]:
    expert_R, token_R = chosen_TE.T.nonzero(as_tuple=True)
    return list(token_R.split(torch.bincount(expert_R, minlength=chosen_TE.shape[1]).tolist()))


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _add(x: Tensor, rows: Tensor | None, y: Tensor) -> Tensor:
    return x.add_(y) if rows is None else x.index_add_(0, rows, y)


class _Layer(NamedTuple):
    """One linear layer of an understanding expert, and the differences to it side by side (None: there are none)."""

    weight: Tensor
    bias: Any
    a: Any
    b: Any

    def thin(self, x_mX: Tensor, which_mG: Tensor) -> Any:
        """A x of each token's own expert, zeros at the others, and its one-hot number where there is a c."""
        if self.a is None:
            return None
        p_mR = F.linear(x_mX, self.a)
        return self.own(p_mR, which_mG) if self.b.shape[1] == p_mR.shape[1] else self.own(p_mR, which_mG, ends=True)

    def own(self, p_mR: Tensor, which_mG: Tensor, ends: bool = False) -> Tensor:
        """Zeros in place of other experts' columns; `ends`: with the one-hot numbers behind."""
        which_mG = which_mG.to(p_mR.dtype)
        p_mR = p_mR * which_mG.repeat_interleave(p_mR.shape[1] // which_mG.shape[1], 1)
        return torch.cat([p_mR, which_mG], 1) if ends else p_mR


class _SharedProducts(torch.autograd.Function):
    """Forward and backward of `shared_products`: what is kept is x, the frozen pre-activations and thin products."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, u_TA: Tensor, v_TG: Tensor, plan: _Plan, *parameters: Tensor | None) -> Tensor:
        out_TH = torch.zeros_like(x_TH)
        saved: list[Any] = []
        with torch.autocast(x_TH.device.type, enabled=False):
            for a, layers in enumerate(_layers(parameters, plan, x_TH.dtype)):
                *inputs, output = layers
                rows_n, places_m, which_mG = plan.rows[a], plan.places[a], plan.which[a]
                x_nH, u_n1 = _take(x_TH, rows_n), _take(u_TA[:, a : a + 1], rows_n).to(x_TH.dtype)
                x_mH, v_m1 = _take(x_nH, places_m), _of(v_TG, plan.flat[a]).to(x_TH.dtype)
                pre = [F.linear(x_nH, layer.weight, layer.bias) for layer in inputs]
                thin = [layer.thin(x_mH, which_mG) for layer in inputs]
                q_mR = None if output.a is None else x_TH.new_empty(len(x_mH), len(output.a))
                hidden_nF, parts = torch.empty_like(pre[0]), list(plan.pieces(a, pre[0]))
                own_mF, *changed = _buffers(parts, pre[0], 1 + len(inputs))
                for rows, mine, places in parts:
                    z, out_nF = [z_nF[rows] for z_nF in pre], hidden_nF[rows]
                    hidden(plan.activation, z, out_nF).mul_(u_n1[rows])
                    if mine.stop > mine.start:
                        z_m = _changed(z, places, thin, mine, inputs, changed)
                        hidden_mF = hidden(plan.activation, z_m, own_mF[: len(z_m[0])])
                        if q_mR is not None:
                            torch.mm(hidden_mF, output.a.T, out=q_mR[mine])
                        if places is None:
                            out_nF.addcmul_(hidden_mF, v_m1[mine])
                        else:
                            out_nF.index_add_(0, places, hidden_mF.mul_(v_m1[mine]))
                y_nH = F.linear(hidden_nF, output.weight)
                if output.bias is not None:
                    y_nH.addcmul_(_add(u_n1.clone(), places_m, v_m1), output.bias)
                if q_mR is not None:
                    q_mR = output.own(q_mR, which_mG, output.b.shape[1] > q_mR.shape[1])
                    _add(y_nH, places_m, F.linear(q_mR, output.b).mul_(v_m1))
                _add(out_TH, rows_n, y_nH)
                saved += [*pre, *thin, q_mR]
        ctx.plan, ctx.num_parameters = plan, len(parameters)
        ctx.save_for_backward(x_TH, u_TA, v_TG, *parameters, *saved)
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x_TH, u_TA, v_TG, *rest = ctx.saved_tensors
        parameters, saved, dtype = rest[: ctx.num_parameters], iter(rest[ctx.num_parameters :]), x_TH.dtype
        du_TA, dv_TG, dx_TH = torch.zeros_like(u_TA), torch.zeros_like(v_TG), torch.zeros_like(x_TH)
        found: list[Tensor | None] = []
        with torch.autocast(x_TH.device.type, enabled=False):
            for a, layers in enumerate(_layers(parameters, plan, dtype)):
                *inputs, output = layers
                pre, thin = [next(saved) for _ in inputs], [next(saved) for _ in inputs]
                q_mR = next(saved)
                rows_n, places_m, which_mG = plan.rows[a], plan.places[a], plan.which[a]
                x_nH, u_n1 = _take(x_TH, rows_n), _take(u_TA[:, a : a + 1], rows_n).to(dtype)
                grad_nH = _take(grad_TH.to(dtype), rows_n)
                x_mH, grad_mH = _take(x_nH, places_m), _take(grad_nH, places_m)
                v_m1 = _of(v_TG, plan.flat[a]).to(dtype)
                dhidden_nF = grad_nH @ output.weight
                dpre = [dhidden_nF, *map(torch.empty_like, pre[1:])]
                du_n, dv_m = grad_nH.new_empty(len(grad_nH)), grad_nH.new_empty(len(grad_mH))
                dthin = [None if p is None else torch.empty_like(p) for p in thin]
                db1 = [None if p is None else torch.zeros_like(layer.b) for p, layer in zip(thin, inputs, strict=True)]
                if q_mR is not None:
                    back_mR = output.own(grad_mH @ output.b[:, : len(output.a)], which_mG)
                    weighted_mR, da2 = back_mR * v_m1, torch.zeros_like(output.a)
                parts, n_inputs = list(plan.pieces(a, dhidden_nF)), len(inputs)
                own_mF, *buffers = _buffers(parts, dhidden_nF, 1 + 2 * n_inputs)
                for rows, mine, places in parts:
                    z, d_nF, out = [z_nF[rows] for z_nF in pre], dhidden_nF[rows], [d[rows] for d in dpre]
                    dz: list[Tensor] = []
                    if mine.stop > mine.start:
                        hidden_mF, *dz = (x_mF[: mine.stop - mine.start] for x_mF in (own_mF, *buffers[:n_inputs]))
                        d_mF = dz[0].copy_(d_nF) if places is None else torch.index_select(d_nF, 0, places, out=dz[0])
                        if q_mR is not None:
                            d_mF.addmm_(back_mR[mine], output.a)
                        changed = _changed(z, places, thin, mine, inputs, buffers[n_inputs:])
                        dv_m[mine] = piece_backward(plan.activation, changed, d_mF, v_m1[mine], dz, hidden_mF)
                        if q_mR is not None:
                            da2.addmm_(weighted_mR[mine].T, hidden_mF)
                        for i, layer in enumerate(inputs):
                            if thin[i] is not None:
                                torch.mm(dz[i], layer.b, out=dthin[i][mine])  # type: ignore[index]
                                db1[i].addmm_(dz[i].T, thin[i][mine])  # type: ignore[union-attr]
                    du_n[rows] = piece_backward(plan.activation, z, d_nF, u_n1[rows], out)
                    for z_nF, dz_mF in zip(out, dz, strict=False):
                        _add(z_nF, places, dz_mF)
                if output.bias is not None:
                    du_n, dv_m = du_n + grad_nH @ output.bias, dv_m + grad_mH @ output.bias
                dx_nH = dpre[0] @ inputs[0].weight
                for dz_nF, layer in zip(dpre[1:], inputs[1:], strict=True):
                    dx_nH.addmm_(dz_nF, layer.weight)
                for layer, dp, db in zip(inputs, dthin, db1, strict=True):
                    da = None
                    if dp is not None:
                        dp_mR = layer.own(dp[:, : len(layer.a)], which_mG)
                        da = dp_mR.T @ x_mH
                        _add(dx_nH, places_m, dp_mR @ layer.a)
                    found += [None, None, da, db]
                if q_mR is None:
                    found += [None] * 4
                else:
                    ends_mG = grad_mH @ output.b[:, len(output.a) :]
                    if ends_mG.shape[1]:
                        dv_m = dv_m + (ends_mG * which_mG).sum(1)
                    found += [None, None, da2, (grad_mH * v_m1).T @ q_mR]
                _add(du_TA[:, a], rows_n, du_n.to(u_TA.dtype))
                dv_TG.view(-1).index_copy_(0, plan.flat[a], dv_m.to(v_TG.dtype))
                _add(dx_TH, rows_n, dx_nH)
        typed = [
            None if gradient is None else gradient.to(parameter.dtype)
            for gradient, parameter in zip(found, parameters, strict=True)
        ]
        return dx_TH, du_TA, dv_TG, None, *typed


def _layers(parameters: Sequence[Any], plan: _Plan, dtype: torch.dtype) -> Iterator[list[_Layer]]:
    """The linear layers of each understanding expert, in the dtype of the products."""
    size = 4 * (plan.inputs + 1)
    for start in range(0, len(parameters), size):
        cast: list[Any] = [None if t is None else t.to(dtype) for t in parameters[start : start + size]]
        for i in range(0, size, 4):
            if start + i in plan.quantized:
                cast[i] = plan.quantized[start + i].dense(dtype)
        yield [_Layer(*cast[i : i + 4]) for i in range(0, size, 4)]


def _of(v_TG: Tensor, flat_m: Tensor) -> Tensor:
    return v_TG.flatten().index_select(0, flat_m)[:, None]


def _buffers(parts: Sequence[tuple[slice, slice, Any]], like_nF: Tensor, count: int) -> list[Tensor]:
    """Room for the rows of the largest piece: a new tensor for each piece costs more than its maths."""
    most = max((mine.stop - mine.start for _, mine, _ in parts), default=0)
    return [like_nF.new_empty(most, like_nF.shape[1]) for _ in range(count)]


def _changed(
    z: Sequence[Tensor],
    places: Tensor | None,
    thin: Sequence[Any],
    mine: slice,
    inputs: Sequence[_Layer],
    buffers: Sequence[Tensor],
) -> list[Tensor]:
    """Pre-activations of the grounding experts at their tokens: z + B A x + c, in `buffers` where it is not z."""
    found = []
    for z_nF, p, layer, buffer in zip(z, thin, inputs, buffers, strict=True):
        out_mF = buffer[: mine.stop - mine.start]
        if places is not None:
            z_nF = torch.index_select(z_nF, 0, places, out=out_mF)
        found.append(z_nF if p is None else torch.addmm(z_nF, p[mine], layer.b.T, out=out_mF))
    return found
