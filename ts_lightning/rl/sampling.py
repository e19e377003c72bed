"""Groups of completions: prompts are read once, every completion draws from a generator of its own.

Shapes: N completions (G of each prompt, one after the other), S steps, V vocabulary.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ts_lightning.data.sample import Sample
from ts_lightning.models.cuda_graph import check_graphs
from ts_lightning.models.generate import DecodeState, constraint_of, decode, look_every, prefill
from ts_lightning.models.packing import pad_left, repeated
from ts_lightning.models.stop import StopText, stop_text
from ts_lightning.models.vlm import VLM
from ts_lightning.rl.log_probs import tempered

BLOCK = 256  # tokens whose probabilities are added up before one of them is looked for


@dataclass
class Sampled:
    """`tokens` of each group's completions, the stop token included; their log-probabilities [N, S], 0 behind the end.

    `stopped`: whether a completion ended by itself. `weight_NS`: of each token in the loss (None: 1).
    """

    tokens: list[list[list[int]]]
    logp_NS: Tensor
    stopped: list[list[bool]]
    weight_NS: Tensor | None = None

    def prompts(self) -> list[dict[str, Any]]:
        """What was drawn for each prompt, in plain values and tensors on the CPU: what a checkpoint keeps."""
        size = len(self.tokens[0])
        values = {"logp": self.logp_NS} | ({} if self.weight_NS is None else {"weight": self.weight_NS})
        parts = {name: value.cpu().split(size) for name, value in values.items()}
        found = []
        for i, (tokens, stopped) in enumerate(zip(self.tokens, self.stopped, strict=True)):
            longest = max(map(len, tokens))
            own = {name: part[i][:, :longest].clone() for name, part in parts.items()}
            found.append({"tokens": tokens, "stopped": stopped, **own})
        return found


def drawn(prompts: Sequence[Mapping[str, Any]], device: torch.device) -> Sampled:
    """The completions of some prompts from what `Sampled.prompts` gave of each."""
    steps = max(prompt["logp"].shape[1] for prompt in prompts)

    def padded(name: str, fill: float) -> Tensor:
        values = (prompt[name] for prompt in prompts)
        parts = [torch.nn.functional.pad(value, (0, steps - value.shape[1]), value=fill) for value in values]
        return torch.cat(parts).to(device)

    weight_NS = padded("weight", 1.0) if "weight" in prompts[0] else None
    tokens, stopped = ([prompt[name] for prompt in prompts] for name in ("tokens", "stopped"))
    return Sampled(tokens, padded("logp", 0.0), stopped, weight_NS)


def sample_groups(
    vlm: VLM,
    batch: Mapping[str, Any],
    group: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop_after: str | None = "</answer>",
    seed: int = 0,
    step: int = 0,
    all_done: Callable[[Tensor], bool] = lambda done_B: bool(done_B.all()),
    names: Sequence[str] | None = None,
    wanted: Sequence[bool] | None = None,
    constrain: bool = False,
    cuda_graph: bool = False,
) -> Sampled:
    """Draw `group` completions of every prompt in `batch` (padded on any side).

    A completion's noise depends on (`seed`, `step`, its prompt's name, its number) alone: not on the batch, the rank or
    the device. `names` are the sample ids by default. wanted: prompts to answer (None: all); the completions of others
    are padding tokens. stop_after: a completion ends with the token that completes this text. Log-probabilities are
    those at `temperature` without the banned tokens, before `top_p`. constrain: a begun box is always finished as the
    codec writes it; log-probabilities are then those among the tokens that may follow (`Allowed` says again which).
    cuda_graph: steps are captured once and launched again. ValueError for a prompt that has no room for
    `max_new_tokens`.
    """
    check_room(vlm, batch, max_new_tokens)
    eos = {int(vlm.tokenizer.eos_token_id)}
    names = [sample.id for sample in batch["samples"]] if names is None else names
    noise_NS = torch.stack([_noise(seed, step, name, g, max_new_tokens) for name in names for g in range(group)])
    noise_NS = noise_NS.to(batch["input_ids"].device)
    logps: list[Tensor] = []

    def draw(logits_RV: Tensor, rows_R: Tensor) -> Tensor:
        logp_RV = tempered(logits_RV, temperature, ())  # decoding has banned what is banned
        token_R = pick(logp_RV, noise_NS[rows_R, len(logps)], top_p)
        logp_R = logp_RV.gather(1, token_R[:, None]).squeeze(1)
        logps.append(logp_R.new_zeros(len(noise_NS)).index_copy(0, rows_R, logp_R))
        return token_R

    with torch.no_grad():
        state = replace(prompts_read(vlm, pad_left(batch), group), cuda_graph=cuda_graph)
        device = state.logits_BV.device
        if cuda_graph:
            check_graphs(state)
        done_N = None if wanted is None else ~torch.tensor(wanted, device=device).repeat_interleave(group)
        ends = stop_text(vlm.tokenizer, stop_after, state.logits_BV.shape[1], device) if stop_after else None
        constraint = constraint_of(vlm, batch["samples"], state.logits_BV.shape[1], group) if constrain else None
        steps = decode(state, draw, eos, max_new_tokens, ends, all_done, look_every(device), done_N, constraint)
        token_NS = torch.stack(list(steps), 1)
    length_N, stopped_N = _lengths(token_NS, eos, ends)
    kept = [row[:length] for row, length in zip(token_NS.tolist(), length_N.tolist(), strict=True)]
    mask_NS = torch.arange(token_NS.shape[1], device=device) < length_N[:, None]
    return Sampled(
        [kept[i : i + group] for i in range(0, len(kept), group)],
        torch.where(mask_NS, torch.stack(logps, 1), 0.0)[:, : max(map(len, kept))],
        stopped_N.view(-1, group).tolist(),
    )


def prompts_read(vlm: VLM, batch: Mapping[str, Any], group: int) -> DecodeState:
    """State behind the prompts of a left-padded batch, for `group` answers of each; it warns where that is slow."""
    if vlm.backbone.branches or group == 1:
        return prefill(vlm, batch).expand(group)
    warnings.warn(
        f"{vlm.backbone.name}: recurrent layers have one past: a prompt is read again for each of its {group} answers",
        stacklevel=2,
    )
    return prefill(vlm, repeated(batch, group))


def pick(logp_NV: Tensor, noise_N: Tensor, top_p: float = 1.0) -> Tensor:
    """One token of each row by inverting the cumulative distribution at `noise_N` in [0, 1).

    top_p: only the likeliest tokens, up to the one that reaches this mass, are drawn from, in proportion.
    """
    if top_p >= 1:
        return _inverted(logp_NV.exp(), noise_N.double())
    probs_NV = logp_NV.double().exp()
    probs_NV, order_NV = probs_NV.sort(dim=1, descending=True, stable=True)
    total_NV = probs_NV.cumsum(1)
    kept_N1 = (total_NV - probs_NV < top_p).sum(1, keepdim=True)
    mass_N1 = total_NV.gather(1, kept_N1 - 1)
    place_N1 = (total_NV <= noise_N[:, None].double() * mass_N1).sum(1, keepdim=True).minimum(kept_N1 - 1)
    return order_NV.gather(1, place_N1).squeeze(1)


def _inverted(probs_NV: Tensor, noise_N: Tensor) -> Tensor:
    """The first token at which the cumulative sum exceeds noise times the whole.

    Sums of blocks come first, then one block is scanned: fp64 is for those alone, probabilities are read once.
    """
    blocks = -(-probs_NV.shape[1] // BLOCK)
    probs_NKL = torch.nn.functional.pad(probs_NV, (0, blocks * BLOCK - probs_NV.shape[1])).unflatten(1, (blocks, BLOCK))
    ends_NK = probs_NKL.sum(2, dtype=torch.float64).cumsum(1)
    goal_N1 = noise_N[:, None] * ends_NK[:, -1:]
    block_N1 = (ends_NK <= goal_N1).sum(1, keepdim=True).clamp(max=blocks - 1)
    rows_N = torch.arange(len(probs_NV), device=probs_NV.device)
    inside_NL = probs_NKL[rows_N, block_N1.squeeze(1)].double().cumsum(1)
    before_N1 = ends_NK.gather(1, block_N1) - inside_NL[:, -1:]
    place_N = (before_N1 + inside_NL <= goal_N1).sum(1)
    return (block_N1.squeeze(1) * BLOCK + place_N.clamp(max=BLOCK - 1)).clamp(max=probs_NV.shape[1] - 1)


def check_room(vlm: VLM, batch: Mapping[str, Any], max_new_tokens: int) -> None:
    """ValueError for the first prompt that leaves less than `max_new_tokens` of the backbone's longest row."""
    for sample, length in zip(batch["samples"], batch["valid"].sum(1).tolist(), strict=True):
        _check_room(sample, length, max_new_tokens, vlm.encoder.max_length)


@dataclass
class PromptEncoder:
    """`encode`; a prompt that leaves less than `max_new_tokens` of `max_length` is a record that can't be read."""

    encode: Callable[..., dict[str, Any]]
    max_new_tokens: int
    max_length: int

    def __call__(self, sample: Sample, for_generation: bool = False) -> dict[str, Any]:
        """As `encode`; ValueError for a prompt without room."""
        row = self.encode(sample, for_generation)
        _check_room(sample, len(row["input_ids"]), self.max_new_tokens, self.max_length)
        return row


def _check_room(sample: Sample, length: int, max_new_tokens: int, limit: int) -> None:
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{sample.where}: seen a prompt of {length} tokens and max_new_tokens {max_new_tokens}, "
            f"expected at most {limit} together"
        )


def _noise(seed: int, step: int, name: str, number: int, count: int) -> Tensor:
    digest = hashlib.sha256(f"{seed} {step} {name} {number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _lengths(token_NS: Tensor, eos: set[int], ends: StopText | None) -> tuple[Tensor, Tensor]:
    """([N] tokens that count, bool [N] whether it ended by itself)."""
    ended_NS = torch.isin(token_NS, torch.tensor(sorted(eos), device=token_NS.device))
    if ends is not None:
        said_N = torch.zeros_like(token_NS[:, 0])
        for step, token_N in enumerate(token_NS.unbind(1)):
            said_N = ends.after(said_N, token_N)
            ended_NS[:, step] |= ends.whole(said_N)
    stopped_N = ended_NS.any(1)
    return torch.where(stopped_N, ended_NS.int().argmax(1) + 1, token_NS.shape[1]), stopped_N
