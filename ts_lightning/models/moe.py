"""A dropless mixture of experts. Legend: T tokens, E experts, K chosen experts per token, H hidden size."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ts_lightning.models.experts import Activation, compute_type, expert_form, resolve, sorted_experts
from ts_lightning.models.routing import Routing, current_routing
from ts_lightning.models.working_copies import WorkingCopies

STATIC_TOKENS = 128  # on a GPU, up to here reading every expert costs no more than reading those that are hit
SMALL_EXPERTS = 2**20  # weights of a layer's experts, on a CPU: up to here calls cost more than their arithmetic


def route(x_TH: Tensor, router: nn.Linear, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `probs_TE` (softmax in fp32), `weights_TK` and `ids_TK`, the largest first.

    For k > 1 the weights are renormalised to sum to one (MoE-LLaVA). For k = 1 the weight is the probability itself:
    renormalised it would be the constant 1 and the router would get no gradient.
    """
    dtype = torch.promote_types(x_TH.dtype, torch.float32)
    with torch.autocast(x_TH.device.type, enabled=False):
        probs_TE = F.linear(x_TH.to(dtype), router.weight.to(dtype)).softmax(-1)
    weights_TK, ids_TK = probs_TE.topk(top_k, dim=-1)
    return probs_TE, weights_TK / weights_TK.sum(-1, keepdim=True) if top_k > 1 else weights_TK, ids_TK


def scattered(weights_TK: Tensor, ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return the weight of every expert [T, E], 0 where it was not chosen, and whether it was."""
    weights_TE = weights_TK.new_zeros(len(ids_TK), num_experts)
    chosen_TE = torch.zeros_like(weights_TE, dtype=torch.bool).scatter_(1, ids_TK, True)
    return weights_TE.scatter(1, ids_TK, weights_TK), chosen_TE


def moe_loop(x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, experts: Iterable[nn.Module]) -> Tensor:
    """Run each expert on its tokens: the readable form, for experts of any kind."""
    out_TH = torch.zeros_like(x_TH)
    for e, expert in enumerate(experts):
        tokens, slots = torch.where(ids_TK == e)
        y_nH = expert(x_TH[tokens])
        out_TH = out_TH.to(y_nH.dtype).index_add(0, tokens, y_nH * weights_TK[tokens, slots, None].to(y_nH.dtype))
    return out_TH


def moe_static(x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, experts: Sequence[nn.Module]) -> Tensor:
    """Run every expert on every token: no shape depends on the routing and the host never waits, for decoding."""
    gates_TE, _ = scattered(weights_TK, ids_TK, len(experts))
    y_ETH = torch.stack([expert(x_TH) for expert in experts])
    return torch.einsum("eth,te->th", y_ETH, gates_TE.to(y_ETH.dtype))


class Joined(NamedTuple):
    """The experts of a layer as one MLP, X = E F hidden units wide: copies of their weights, for some decoding steps.

    `inputs` are weight [H, X] and bias [X] of act(z), or of the gate and of what it gates; `output_XH`, `bias_EH`.
    """

    inputs: list[tuple[Tensor, Tensor | None]]
    output_XH: Tensor
    bias_EH: Tensor | None
    activation: Activation


def join(experts: nn.ModuleList, dtype: torch.dtype) -> Joined | None:
    """Experts of one known form side by side; None for others, and for large ones."""
    form = expert_form(experts[0])
    small = sum(p.numel() for p in experts.parameters()) <= SMALL_EXPERTS
    if form is None or not small or any(expert_form(expert) != form for expert in experts):
        return None

    def side_by_side(name: str, stack: Callable[..., Tensor] = torch.cat) -> tuple[list[Tensor], Tensor | None]:
        layers = [getattr(expert, name) for expert in experts]
        biases = [layer.bias.to(dtype) for layer in layers if layer.bias is not None]
        return [layer.weight.to(dtype) for layer in layers], stack(biases) if biases else None

    inputs = [(torch.cat(weights).T.contiguous(), bias) for weights, bias in map(side_by_side, form.inputs)]
    weights, bias_EH = side_by_side(form.output, torch.stack)
    return Joined(inputs, torch.cat(weights, 1).T.contiguous(), bias_EH, getattr(experts[0], form.activation))


def moe_joined(x_TH: Tensor, weights_TK: Tensor, ids_TK: Tensor, experts: Joined, num_experts: int) -> Tensor:
    """Run all experts as one MLP whose hidden units the routing weighs: the fewest calls, for decoding on a CPU."""
    x_TH = x_TH.to(experts.output_XH.dtype)
    gates_TE = weights_TK.new_zeros(len(ids_TK), num_experts).scatter_(1, ids_TK, weights_TK).to(x_TH.dtype)
    pre = [x_TH @ weight if bias is None else torch.addmm(bias, x_TH, weight) for weight, bias in experts.inputs]
    hidden_TX = resolve(experts.activation, "cuda")(pre[0])  # in one call
    hidden_TX = hidden_TX * pre[1] if len(pre) > 1 else hidden_TX
    hidden_TX = (hidden_TX.view(len(x_TH), num_experts, -1) * gates_TE[..., None]).view_as(hidden_TX)
    if experts.bias_EH is None:
        return hidden_TX @ experts.output_XH
    return torch.addmm(gates_TE @ experts.bias_EH, hidden_TX, experts.output_XH)


def is_static(x_TH: Tensor) -> bool:
    """Whether `moe_static` costs less: a few tokens on a GPU, as in decoding."""
    return x_TH.is_cuda and len(x_TH) <= STATIC_TOKENS and not torch.is_grad_enabled()


class MoE(nn.Module):
    """y = sum_k w_k expert_k(x): `router` scores, the `top_k` best experts answer, no token is dropped.

    Experts are MLPs as transformers has them (`fc1, fc2, activation_fn` or `gate_proj, up_proj, down_proj, act_fn`).
    Input and output [..., H]. Inside `routing(collect=True)` the router's output is collected there.
    """

    experts: nn.ModuleList
    router: nn.Linear
    top_k: int
    working_copies: WorkingCopies | None = None  # of its experts' weights, while `CastOnce` holds them

    def __init__(self, experts: nn.ModuleList, router: nn.Linear, top_k: int) -> None:
        super().__init__()
        if router.bias is not None or router.out_features != len(experts):
            raise ValueError(f"router: seen {router}, expected no bias and out_features={len(experts)}")
        if not 1 <= top_k <= len(experts):
            raise ValueError(f"top_k: seen {top_k}, expected 1 to {len(experts)}")
        self.experts = experts
        self.router = router
        self.top_k = top_k

    @classmethod
    def copies(cls, mlp: nn.Module | Sequence[nn.Module], num_experts: int, top_k: int) -> "MoE":
        """Make `num_experts` trainable copies of one MLP (or of several, in turn) and a small random router."""
        sources = [mlp] if isinstance(mlp, nn.Module) and not isinstance(mlp, nn.ModuleList) else list(mlp)
        experts = nn.ModuleList(copy.deepcopy(sources[e % len(sources)]) for e in range(num_experts))
        first = next(module for module in experts[0].modules() if isinstance(module, nn.Linear))
        return cls.of(experts.requires_grad_(True).train(), first, top_k)

    @classmethod
    def of(cls, experts: nn.ModuleList, like: Any, top_k: int) -> "MoE":
        """A mixture of these experts with a small random router, for inputs as those of the linear layer `like`."""
        router = nn.Linear(like.in_features, len(experts), bias=False, device=like.weight.device)
        nn.init.normal_(router.weight, std=0.02)
        return cls(experts, router, top_k)

    def forward(self, x: Tensor, top_k: int | None = None, tokens_N: Tensor | None = None) -> Tensor:
        """Return the mixture for hidden states [..., H].

        top_k: another number of experts a token than the layer's own. tokens_N: where `x` holds some tokens of a
        forward's [B, T] only, their flat positions.
        """
        x_TH = x.reshape(-1, x.shape[-1])
        weights_TK, ids_TK = self.chosen(x_TH, top_k, tokens_N)
        if (experts := self._joined(x_TH, current_routing())) is not None:
            return moe_joined(x_TH, weights_TK, ids_TK, experts, len(self.experts)).view_as(x)
        return self._path(x_TH)(x_TH, weights_TK, ids_TK, self.experts).view_as(x)

    def chosen(self, x_TH: Tensor, top_k: int | None = None, tokens_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `weights_TK` and `ids_TK` of `route`; what the router did is kept where the routing collects it."""
        probs_TE, weights_TK, ids_TK = route(x_TH, self.router, top_k or self.top_k)
        context = current_routing()
        if context is not None and context.collect:
            context.record(self, probs_TE, ids_TK, tokens_N)
        return weights_TK, ids_TK

    def _path(self, x_TH: Tensor) -> Callable[..., Tensor]:
        if is_static(x_TH):
            return moe_static
        if not all(map(expert_form, self.experts)):
            return moe_loop
        return partial(sorted_experts, copies=self.working_copies)

    def _joined(self, x_TH: Tensor, context: Routing | None) -> Joined | None:
        """What decoding keeps of the experts; None where it does not, and for a prompt."""
        if context is None or context.kept is None or x_TH.is_cuda or len(x_TH) > STATIC_TOKENS:
            return None
        if self not in context.kept:
            context.kept[self] = join(self.experts, compute_type(x_TH))
        return context.kept[self]
