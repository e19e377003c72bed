"""The experts of one MoE as one autograd function: each runs once, on exactly the tokens sent to it.

Against plain autograd it keeps only the input and the experts' pre-activations: the activation is recomputed in
backward, the router's gradient <dY, y> is read from <dY W2, hidden> so that y is never kept, and a frozen expert gets
no weight gradient. Legend: T tokens, K experts per token, n tokens of one expert, H hidden size, F expert size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Callable[[Tensor], Tensor]


class ExpertForm(NamedTuple):
    """Names of an MLP's parts: one input projection, or a gate and an up projection whose product is the hidden."""

    inputs: tuple[str, ...]
    output: str
    activation: str


FORMS = (ExpertForm(("fc1",), "fc2", "activation_fn"), ExpertForm(("gate_proj", "up_proj"), "down_proj", "act_fn"))


def expert_form(expert: nn.Module) -> ExpertForm | None:
    """Return the form of an MLP of plain linear layers, None for anything else (adapters on the layers included)."""
    for form in FORMS:
        if all(type(getattr(expert, name, None)) is nn.Linear for name in (*form.inputs, form.output)):
            return form
    return None


def _activation(expert: nn.Module, form: ExpertForm) -> Activation:
    function = getattr(expert, form.activation)
    if type(function).__name__ == "NewGELUActivation":  # the same tanh formula, spelled out in eight kernels
        return partial(F.gelu, approximate="tanh")
    return function


def _hidden(activation: Activation, pre: list[Tensor]) -> Tensor:
    """hidden_nF = act(pre) or act(gate) * up."""
    return activation(pre[0]) if len(pre) == 1 else activation(pre[0]) * pre[1]


def sorted_experts(x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, experts: nn.ModuleList) -> Tensor:
    """Return sum_k weights[t, k] * expert_{ids[t, k]}(x[t]) for experts of one known form.

    Computes in the autocast dtype if autocast is on, else in the dtype of `x`; parameters of any dtype are cast. An
    expert without tokens gets zero gradients.
    """
    form = expert_form(experts[0])
    assert form is not None, "experts of an unknown form take the loop"
    linears = [getattr(expert, name) for expert in experts for name in (*form.inputs, form.output)]
    parameters = [tensor for linear in linears for tensor in (linear.weight, linear.bias)]
    device = x_TH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TH.dtype
    activation = _activation(experts[0], form)
    return _SortedExperts.apply(x_TH.to(dtype), weights_TK, ids_TK, len(experts), activation, *parameters)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype)


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
        *parameters: Tensor | None,
    ) -> Tensor:
        ids = ids_TK.flatten()
        slots = ids.argsort(stable=True)  # positions in [T, K], sorted by expert
        counts = torch.bincount(ids, minlength=num_experts).tolist()  # the one host synchronisation
        size = len(parameters) // num_experts
        out_TH, saved = torch.zeros_like(x_TH), []
        with torch.autocast(x_TH.device.type, enabled=False):
            for e, slots_n in enumerate(slots.split(counts)):
                *inputs, w_out, b_out = (_cast(p, x_TH.dtype) for p in parameters[e * size : (e + 1) * size])
                tokens_n = slots_n // ids_TK.shape[1]
                x_nH = x_TH.index_select(0, tokens_n)
                pre = [F.linear(x_nH, w, b) for w, b in zip(inputs[::2], inputs[1::2], strict=True)]
                y_nH = F.linear(_hidden(activation, pre), w_out, b_out)
                weight_n = weights_TK.flatten().index_select(0, slots_n).to(y_nH.dtype)
                out_TH.index_add_(0, tokens_n, y_nH.mul_(weight_n[:, None]))
                saved += pre
        ctx.save_for_backward(x_TH, weights_TK, slots, *parameters, *saved)
        ctx.counts, ctx.num_parameters, ctx.activation = counts, len(parameters), activation
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, weights_TK, slots, *rest = ctx.saved_tensors
        parameters, saved = rest[: ctx.num_parameters], rest[ctx.num_parameters :]
        size = len(parameters) // len(ctx.counts)
        num_inputs = size // 2 - 1
        need_x, need_weights, *need = ctx.needs_input_grad[:2] + ctx.needs_input_grad[5:]
        dx_TH = torch.zeros_like(x_TH) if need_x else None
        dweights = torch.zeros(weights_TK.numel(), dtype=weights_TK.dtype, device=weights_TK.device)
        dparameters: list[Tensor | None] = []
        with torch.autocast(x_TH.device.type, enabled=False):
            for e, slots_n in enumerate(slots.split(ctx.counts)):
                needed = need[e * size : (e + 1) * size]
                *inputs, w_out, b_out = (_cast(p, x_TH.dtype) for p in parameters[e * size : (e + 1) * size])
                tokens_n = slots_n // weights_TK.shape[1]
                weight_n1 = weights_TK.flatten().index_select(0, slots_n).to(x_TH.dtype)[:, None]
                grad_nH = grad_TH.index_select(0, tokens_n)
                with torch.enable_grad():
                    pre = [z.detach().requires_grad_() for z in saved[e * num_inputs : (e + 1) * num_inputs]]
                    hidden_nF = _hidden(ctx.activation, pre)
                dhidden_nF = grad_nH @ w_out
                if need_weights:  # <dY, y> = <dY W2, hidden> + <dY, b2>
                    dweight_n = torch.linalg.vecdot(dhidden_nF, hidden_nF.detach())
                    if b_out is not None:
                        dweight_n = dweight_n + grad_nH @ b_out
                    dweights.index_copy_(0, slots_n, dweight_n.to(dweights.dtype))
                dpre = torch.autograd.grad(hidden_nF, pre, dhidden_nF.mul_(weight_n1))
                if dx_TH is not None:
                    for z_nF, w in zip(dpre, inputs[::2], strict=True):
                        dx_TH.index_add_(0, tokens_n, z_nF @ w)
                if any(needed):
                    x_nH, scaled_nH = x_TH.index_select(0, tokens_n), grad_nH.mul_(weight_n1)
                    sides = [(z_nF, x_nH) for z_nF in dpre] + [(scaled_nH, hidden_nF.detach())]
                    pairs = [pair for d_out, d_in in sides for pair in ((d_out, d_in), (d_out, None))]
                    for parameter, (d_out, d_in), wanted in zip(
                        parameters[e * size : (e + 1) * size], pairs, needed, strict=True
                    ):
                        gradient = None if not wanted else d_out.sum(0) if d_in is None else d_out.T @ d_in
                        dparameters.append(_cast(gradient, parameter.dtype) if wanted else None)
                else:
                    dparameters += [None] * size
        return dx_TH, dweights.view_as(weights_TK) if need_weights else None, None, None, None, *dparameters
