"""The experts of one MoE as one autograd function: each runs once, on exactly the tokens sent to it.

Against plain autograd it keeps only the input and the experts' pre-activations: the activation is recomputed in
backward, in pieces that stay in the cache, the router's gradient <dY, y> is read from <dY W2, hidden> so that y is
never kept, and a frozen expert gets no weight gradient. docs/benchmarks.md has what that saves.

Legend: T tokens, K experts per token, N = T K, n tokens of one expert, H hidden size, F expert size; `pre` is [z] for
act(z), or [gate, up] for act(gate) * up.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ts_lightning.models.working_copies import WorkingCopies

Activation = Callable[[Tensor], Tensor]
CACHED_ELEMENTS = 2**18  # of one tensor, on a CPU; a GPU takes all rows at once
INNER_ELEMENTS = 2**15  # of one of the six that an activation's derivative works on: they fit a core's own cache
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
_TANH_GELU_NAMES = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh")  # one formula, three spellings


class ExpertForm(NamedTuple):
    """Names of an MLP's parts: one input projection, or a gate and an up projection whose product is the hidden."""

    inputs: tuple[str, ...]
    output: str
    activation: str


FORMS = (ExpertForm(("fc1",), "fc2", "activation_fn"), ExpertForm(("gate_proj", "up_proj"), "down_proj", "act_fn"))


def expert_form(expert: nn.Module, plain: bool = True) -> ExpertForm | None:
    """Return the form of an MLP of plain linear layers, None for anything else (adapters on the layers included).

    With `plain` False its layers may be of any class with the sizes of a linear layer: quantised ones.
    """
    for form in FORMS:
        layers = [getattr(expert, name, None) for name in (*form.inputs, form.output)]
        if all(type(layer) is nn.Linear if plain else hasattr(layer, "in_features") for layer in layers):
            return form
    return None


def sorted_experts(
    x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, experts: nn.ModuleList, copies: WorkingCopies | None = None
) -> Tensor:
    """Return sum_k weights[t, k] * expert_{ids[t, k]}(x[t]) for experts of one known form: the fast form.

    Computes in the autocast dtype if autocast is on, else in the dtype of `x`; parameters of any dtype are cast, or
    taken from `copies`. An expert without tokens gets zero gradients.
    """
    form = expert_form(experts[0])
    assert form is not None, "experts of an unknown form take the loop"
    linears = [getattr(expert, name) for expert in experts for name in (*form.inputs, form.output)]
    parameters = [tensor for linear in linears for tensor in (linear.weight, linear.bias)]
    activation = resolve(getattr(experts[0], form.activation), x_TH.device.type)
    x_TH = x_TH.to(compute_type(x_TH))
    return _SortedExperts.apply(x_TH, weights_TK, ids_TK, len(experts), activation, copies, *parameters)


def compute_type(x_TH: Tensor) -> torch.dtype:
    """That of autocast where it is on, else that of `x_TH`."""
    device = x_TH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TH.dtype


def _cast(tensor: Any, dtype: torch.dtype, copies: WorkingCopies | None) -> Any:
    if tensor is None or copies is None:
        return None if tensor is None else tensor.to(dtype)
    return copies.of(tensor, dtype)


def _combine(y_NH: Tensor, slots_N: Tensor, top_k: int) -> Tensor:
    """Sum the K results of every token; `y_NH` is sorted by expert, `slots_N` are its positions in [T, K]."""
    place_TK = torch.empty_like(slots_N).index_copy_(0, slots_N, torch.arange(len(slots_N), device=slots_N.device))
    first, *others = place_TK.view(-1, top_k).unbind(1)
    out_TH = y_NH.index_select(0, first)
    for other in others:
        out_TH += y_NH.index_select(0, other)
    return out_TH


class _SortedExperts(torch.autograd.Function):
    """Forward and backward of `sorted_experts`. Parameters come flat: weight and bias of each linear, per expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TH: Tensor,
        weights_TK: Tensor,
        ids_TK: Tensor,
        num_experts: int,
        activation: Activation,
        copies: WorkingCopies | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        top_k, size, dtype = ids_TK.shape[1], len(parameters) // num_experts, x_TH.dtype
        slots_N = ids_TK.flatten().argsort(stable=True)
        counts = torch.bincount(ids_TK.flatten(), minlength=num_experts).tolist()  # the one host synchronisation
        weights_N1 = weights_TK.flatten().index_select(0, slots_N).to(dtype)[:, None]
        y_NH, saved = x_TH.new_empty(len(slots_N), x_TH.shape[1]), []
        with torch.autocast(x_TH.device.type, enabled=False):
            parts = zip(slots_N.split(counts), weights_N1.split(counts), y_NH.split(counts), strict=True)
            for e, (slots_n, weight_n1, y_nH) in enumerate(parts):
                *inputs, w_out, b_out = (_cast(p, dtype, copies) for p in parameters[e * size : (e + 1) * size])
                x_nH = x_TH.index_select(0, slots_n // top_k)
                pre = [F.linear(x_nH, w, b) for w, b in zip(inputs[::2], inputs[1::2], strict=True)]
                torch.mul(F.linear(hidden(activation, pre), w_out, b_out), weight_n1, out=y_nH)
                saved += pre
            out_TH = _combine(y_NH, slots_N, top_k)
        ctx.save_for_backward(x_TH, weights_TK, slots_N, *parameters, *saved)
        ctx.counts, ctx.num_parameters, ctx.activation, ctx.copies = counts, len(parameters), activation, copies
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, weights_TK, slots_N, *rest = ctx.saved_tensors
        parameters, saved = rest[: ctx.num_parameters], rest[ctx.num_parameters :]
        counts, copies, top_k, dtype = ctx.counts, ctx.copies, weights_TK.shape[1], x_TH.dtype
        size = len(parameters) // len(counts)
        per_expert = len(saved) // len(counts)
        need_x, need_weights, *need = ctx.needs_input_grad[:2] + ctx.needs_input_grad[6:]
        weights_N1 = weights_TK.flatten().index_select(0, slots_N).to(dtype)[:, None]
        dx_NH = x_TH.new_empty(len(slots_N), x_TH.shape[1]) if need_x else None
        dweight_N = weights_TK.new_empty(len(slots_N))
        dparameters: list[Tensor | None] = []
        with torch.autocast(x_TH.device.type, enabled=False):
            start = 0
            for e, slots_n in enumerate(slots_N.split(counts)):
                mine = slice(start, start := start + counts[e])
                *inputs, w_out, b_out = (_cast(p, dtype, copies) for p in parameters[e * size : (e + 1) * size])
                pre = saved[e * per_expert : (e + 1) * per_expert]
                grad_nH = grad_TH.index_select(0, slots_n // top_k)
                needed = need[e * size : (e + 1) * size]
                hidden_nF, dot_n, dpre = hidden_backward(
                    ctx.activation, pre, grad_nH @ w_out, weights_N1[mine], keep_hidden=any(needed)
                )
                # <dY, y> = <dY W2, hidden> + <dY, b2>
                dweight_N[mine] = dot_n if b_out is None else dot_n + grad_nH @ b_out
                if dx_NH is not None:
                    for i, (z_nF, w) in enumerate(zip(dpre, inputs[::2], strict=True)):
                        dx_NH[mine].addmm_(z_nF, w, beta=min(i, 1))
                if not any(needed):
                    dparameters += [None] * size
                    continue
                x_nH = x_TH.index_select(0, slots_n // top_k)
                sides = [(z_nF, x_nH) for z_nF in dpre] + [(grad_nH.mul_(weights_N1[mine]), hidden_nF)]
                for i, (d_out, d_in) in enumerate(sides):
                    weight, bias = parameters[e * size + 2 * i], parameters[e * size + 2 * i + 1]
                    dparameters.append((d_out.T @ d_in).to(weight.dtype) if needed[2 * i] else None)
                    dparameters.append(d_out.sum(0).to(bias.dtype) if needed[2 * i + 1] else None)
            dx_TH = None if dx_NH is None else _combine(dx_NH, slots_N, top_k)
        dweights_TK = torch.empty_like(dweight_N).index_copy_(0, slots_N, dweight_N).view_as(weights_TK)
        return dx_TH, dweights_TK if need_weights else None, None, None, None, None, *dparameters


def resolve(activation: Activation, device: str) -> Activation:
    """Return the same function in its fastest form on `device`."""
    if type(activation).__name__ not in _TANH_GELU_NAMES:
        return activation
    return tanh_gelu if device == "cpu" else partial(F.gelu, approximate="tanh")


def _exact(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def _gate(z: Tensor, out: Tensor | None = None) -> Tensor:
    """Return sigmoid(z (a + c z^2))."""
    return torch.addcmul(z.new_tensor(_LINEAR), z, z, value=_CUBIC, out=out).mul_(z).sigmoid_()


def tanh_gelu(z: Tensor) -> Tensor:
    """0.5 z (1 + tanh(u)) = z sigmoid(2u), 2u = z (a + c z^2): on a CPU a sigmoid costs a third of a tanh."""
    exact = _exact(z)
    return _gate(exact).mul_(exact).to(z.dtype)


def _tanh_gelu_vjp(z: Tensor, gradient: Tensor, scratch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return y = z s and gradient * y'; y' = s + y (1 - s) (a + 3 c z^2), with s = sigmoid(z (a + c z^2)).

    In buffers: a new tensor for each product costs more than the product. They are used again by the next call.
    """
    exact = _exact(z)
    y, s, steep, rest = (buffer[: len(z)] for buffer in scratch)
    torch.mul(_gate(exact, s), exact, out=y)
    torch.addcmul(exact.new_tensor(_LINEAR), exact, exact, value=3 * _CUBIC, out=steep)
    torch.addcmul(y, y, s, value=-1, out=rest)
    return y.to(z.dtype), s.addcmul_(rest, steep).mul_(gradient).to(z.dtype)


def _vjp(activation: Activation, z: Tensor, gradient: Tensor, scratch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return act(z) and gradient * act'(z)."""
    if activation is tanh_gelu:
        return _tanh_gelu_vjp(z, gradient, scratch)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        y = activation(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, gradient)[0]


def pieces(z_nF: Tensor, elements: int | None = None) -> Iterator[slice]:
    """Rows that stay in the cache together; on a GPU all of them."""
    elements = elements or CACHED_ELEMENTS
    rows = max(1, elements // z_nF.shape[1]) if z_nF.device.type == "cpu" else max(1, z_nF.shape[0])
    return (slice(start, start + rows) for start in range(0, z_nF.shape[0], rows))


def hidden(activation: Activation, pre: list[Tensor], into_nF: Tensor | None = None) -> Tensor:
    """Return hidden_nF = act(z) or act(gate) * up, in `into_nF` where it is given."""
    hidden_nF = torch.empty_like(pre[0]) if into_nF is None else into_nF
    for rows in pieces(hidden_nF, INNER_ELEMENTS):
        (z, *up), out = (z_nF[rows] for z_nF in pre), hidden_nF[rows]
        if up:
            torch.mul(activation(z), up[0], out=out)
        elif activation is tanh_gelu and z.dtype == _exact(z).dtype:
            _gate(z, out).mul_(z)
        else:
            out.copy_(activation(z))
    return hidden_nF


def piece_backward(
    activation: Activation,
    pre: list[Tensor],
    d_nF: Tensor,
    weight_n1: Tensor,
    out: list[Tensor],
    hidden_nF: Tensor | None = None,
) -> Tensor:
    """Return <d, hidden> per token; write weight * d/dpre to `out` (its first may be `d_nF`), hidden where wanted."""
    dot_n, parts = d_nF.new_empty(len(d_nF)), list(pieces(d_nF, INNER_ELEMENTS))
    product_nF = torch.empty_like(d_nF[parts[0]]) if parts else d_nF
    exact = torch.promote_types(d_nF.dtype, torch.float32)
    scratch = [torch.empty_like(product_nF, dtype=exact) for _ in range(4 if activation is tanh_gelu else 0)]
    for rows in parts:
        (z, *up), d, weight = (z_nF[rows] for z_nF in pre), d_nF[rows], weight_n1[rows]
        y, dz = _vjp(activation, z, d * up[0] if up else d, scratch)
        if up:
            torch.mul(d, y, out=out[1][rows]).mul_(weight)
            y = y.mul_(up[0])
        if hidden_nF is not None:
            hidden_nF[rows] = y
        dot_n[rows] = torch.mul(y, d, out=product_nF[: len(d)]).sum(-1)
        torch.mul(dz, weight, out=out[0][rows])
    return dot_n


def hidden_backward(
    activation: Activation, pre: list[Tensor], dhidden_nF: Tensor, weight_n1: Tensor, keep_hidden: bool
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Return hidden_nF if wanted, <dhidden, hidden> per token, and weight * d/dpre; overwrites `dhidden_nF`."""
    hidden_nF = torch.empty_like(dhidden_nF) if keep_hidden else None
    dpre = [dhidden_nF, *map(torch.empty_like, pre[1:])]
    dot_n = piece_backward(activation, pre, dhidden_nF, weight_n1, dpre, hidden_nF)
    return hidden_nF, dot_n, dpre
