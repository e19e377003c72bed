"""The hidden layer of an expert and its backward, recomputed from the pre-activations in pieces that stay in the cache.

Legend: n tokens, F expert size; `pre` is [z] for act(z), or [gate, up] for act(gate) * up.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
CACHED_ELEMENTS = 2**18  # of one tensor, on a CPU; a GPU takes all rows at once
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
_TANH_GELU_NAMES = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh")  # one formula, three spellings


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


def _tanh_gelu_vjp(z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return y = z s and gradient * y'; y' = s + y (1 - s) (a + 3 c z^2), with s = sigmoid(z (a + c z^2))."""
    exact = _exact(z)
    s = _gate(exact)
    y = s * exact
    steep = torch.addcmul(exact.new_tensor(_LINEAR), exact, exact, value=3 * _CUBIC)
    slope = s.addcmul_(torch.addcmul(y, y, s, value=-1), steep)
    return y.to(z.dtype), slope.mul_(gradient).to(z.dtype)


def _vjp(activation: Activation, z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return act(z) and gradient * act'(z)."""
    if activation is tanh_gelu:
        return _tanh_gelu_vjp(z, gradient)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        y = activation(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, gradient)[0]


def _pieces(z_nF: Tensor) -> Iterator[slice]:
    rows = max(1, CACHED_ELEMENTS // z_nF.shape[1]) if z_nF.device.type == "cpu" else max(1, z_nF.shape[0])
    return (slice(start, start + rows) for start in range(0, z_nF.shape[0], rows))


def hidden(activation: Activation, pre: list[Tensor]) -> Tensor:
    """Return hidden_nF = act(z) or act(gate) * up."""
    hidden_nF = torch.empty_like(pre[0])
    for rows in _pieces(hidden_nF):
        (z, *up), out = (z_nF[rows] for z_nF in pre), hidden_nF[rows]
        if up:
            torch.mul(activation(z), up[0], out=out)
        elif activation is tanh_gelu and z.dtype == _exact(z).dtype:
            _gate(z, out).mul_(z)
        else:
            out.copy_(activation(z))
    return hidden_nF


def hidden_backward(
    activation: Activation, pre: list[Tensor], dhidden_nF: Tensor, weight_n1: Tensor, keep_hidden: bool
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Return hidden_nF if wanted, <dhidden, hidden> per token, and weight * d/dpre; overwrites `dhidden_nF`."""
    hidden_nF = torch.empty_like(dhidden_nF) if keep_hidden else None
    dot_n = dhidden_nF.new_empty(len(dhidden_nF))
    dpre = [dhidden_nF, *map(torch.empty_like, pre[1:])]
    for rows in _pieces(dhidden_nF):
        (z, *up), d = (z_nF[rows] for z_nF in pre), dhidden_nF[rows]
        y, dz = _vjp(activation, z, d * up[0] if up else d)
        product = y * up[0] if up else y
        if hidden_nF is not None:
            hidden_nF[rows] = product
        dot_n[rows] = (product * d).sum(-1)
        if up:
            torch.mul(d, y, out=dpre[1][rows]).mul_(weight_n1[rows])
        torch.mul(dz, weight_n1[rows], out=dpre[0][rows])
    return hidden_nF, dot_n, dpre
