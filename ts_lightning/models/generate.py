"""The one decode loop: prefill once, expand to a group, step. Validation, predict, the page and rollouts use it.

Legend: B rows, T prompt positions (padded left), V vocabulary, N heads, S positions of the cache, D size of a head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ts_lightning.models.constrain import Constraint
from ts_lightning.models.cuda_graph import GraphedStep
from ts_lightning.models.moe import STATIC_TOKENS
from ts_lightning.models.packing import PAD_BRANCH
from ts_lightning.models.sharding import all_ranks_done, is_sharded, kept_whole
from ts_lightning.models.stop import StopText

if TYPE_CHECKING:
    from ts_lightning.models.vlm import VLM

Sampler = Callable[[Tensor, Tensor], Tensor]
COMPACT = 16  # tokens after which answers that have ended leave the batch


@dataclass
class DecodeState:
    """Where decoding stands: the cache, the logits of the next token of every answer, and whose the cache's keys are.

    A prompt may have `group` answers: they are branches behind it (`models.packing`), so its keys and values are kept,
    and read, once. Logits are those of prompt 0's answers, then prompt 1's ... `alpha` stands in place of the learned.
    `own_BG` are the branches of a prompt's answers: 1 to G until some have left. `kept`: see `models.routing.Routing`.
    `cuda_graph`: steps of few answers are captured once and launched again (`models.cuda_graph`), on CUDA alone.
    """

    vlm: "VLM"
    cache: Cache
    logits_BV: Tensor
    branch_BT: Tensor
    position_B: Tensor
    task_B: Tensor
    own_BG: Tensor
    alpha: float | None = None
    kept: dict[nn.Module, Any] = field(default_factory=dict)
    cuda_graph: bool = False
    graphed: GraphedStep | None = None

    @property
    def group(self) -> int:
        """Answers of each prompt."""
        return self.own_BG.shape[1]

    def expand(self, group: int) -> "DecodeState":
        """`group` answers to every prompt; nothing is computed or copied again."""
        own_BG = torch.arange(1, group + 1, device=self.own_BG.device).expand(len(self.own_BG), -1)
        return replace(self, logits_BV=self.logits_BV.repeat_interleave(group, 0), own_BG=own_BG)

    def without(self, done_B: Tensor) -> tuple["DecodeState", Tensor]:
        """The state without answers that have ended, and the rows that stay.

        Prompts whose answers have all ended leave, and of the others as many answers as the longest prompt needs: rows
        stay a rectangle, so some that have ended may stay, and one prompt always does. It waits for the device.
        """
        alive_BG = ~done_B.view(-1, self.group).cpu()
        prompts = alive_BG.any(1).nonzero().squeeze(1) if alive_BG.any() else torch.zeros(1, dtype=torch.long)
        width = max(int(alive_BG.sum(1).max()), 1)
        if 4 * len(prompts) * width > 3 * alive_BG.numel():  # not worth the copy of the cache
            return self, torch.arange(alive_BG.numel(), device=done_B.device)
        branches = (
            alive_BG[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width].sort(1).values
        )
        rows = (prompts[:, None] * self.group + branches).flatten().to(done_B.device)
        prompts, branches = prompts.to(done_B.device), branches.to(done_B.device)
        if len(prompts) < len(alive_BG):
            # recurrent layers of transformers have no batch_select_indices
            self.cache.reorder_cache(prompts)  # type: ignore[arg-type]
        kept = replace(
            self,
            logits_BV=self.logits_BV[rows],
            branch_BT=self.branch_BT[prompts],
            position_B=self.position_B[prompts],
            task_B=self.task_B[prompts],
            own_BG=self.own_BG[prompts].gather(1, branches),
            graphed=None,
        )
        return kept, rows

    def step(self, token_B: Tensor) -> None:
        """Read one more token of every answer."""
        if self.cuda_graph and len(token_B) <= STATIC_TOKENS:  # of more, experts' tokens are counted on the host
            if self.graphed is None or self.graphed.is_full:
                self.graphed = GraphedStep(self)
            self.graphed(self, token_B)
            return
        token_BG = token_B.view(-1, self.group)
        self.branch_BT = torch.cat([self.branch_BT, self.own_BG], 1)
        self.logits_BV = self.read(token_BG, self.branch_BT, self.position_B)
        self.position_B = self.position_B + 1

    def read(self, token_BG: Tensor, branch_BT: Tensor, position_B: Tensor) -> Tensor:
        """Logits behind one more token of every answer, whose keys are the last but for room of `PAD_BRANCH`."""
        batch = {"task": self.task_B, "valid": torch.ones_like(token_BG, dtype=torch.bool)}
        with self.vlm.routing(batch, alpha=self.alpha, kept=self.kept) as context:
            hidden_BGH = self.vlm.backbone.decoder(
                **self.vlm.decoder_inputs({"input_ids": token_BG}, context),
                attention_mask=self.vlm.backbone.mask(self.own_BG, branch_BT),
                position_ids=position_B[:, None].expand_as(token_BG),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return self.vlm.logits(hidden_BGH.flatten(0, 1), self.task_B.repeat_interleave(self.group), context)


def prefill(vlm: "VLM", batch: Mapping[str, Any], alpha: float | None = None) -> DecodeState:
    """Read the prompts of a left-padded batch; ValueError for one padded on the right.

    Several questions in a row (`models.packing`) read what they share once, and go on in rows of their own.
    """
    packed = "columns" in batch
    if not bool(batch["question_valid" if packed else "valid"][:, -1].all()):
        raise ValueError("generate: seen a row padded on the right, expected prompts padded on the left")
    cache = vlm.backbone.cache()
    branch_BT = torch.where(batch["valid"], batch["branch"] if packed else 0, PAD_BRANCH)
    with vlm.routing(batch, alpha=alpha) as context:
        hidden_BTH = vlm.backbone.decoder(
            **vlm.decoder_inputs(batch, context),
            attention_mask=vlm.backbone.mask(branch_BT, batch=batch),
            position_ids=batch["position_ids"],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    hidden_BH, positions, task_B = hidden_BTH[:, -1], batch["position_ids"], batch["task"]
    if packed:
        rows_B, columns_BT = batch["question_rows"], batch["columns"]
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.lay_out(rows_B, columns_BT)
        hidden_BH, task_B = hidden_BTH[rows_B, columns_BT[:, -1]], task_B[rows_B]
        positions = positions[..., rows_B[:, None], columns_BT]
        branch_BT = torch.where(batch["question_valid"], 0, PAD_BRANCH)
    logits_BV = vlm.logits(hidden_BH, task_B, context)
    last_B = positions.amax(-1)  # with pictures of several axes the largest of them counts
    position_B = (last_B if last_B.ndim == 1 else last_B.amax(0)) + 1
    own_BG = torch.ones_like(position_B)[:, None]
    return DecodeState(vlm, cache, logits_BV, branch_BT, position_B, task_B, own_BG, alpha)


def greedy(logits_BV: Tensor, rows_B: Tensor) -> Tensor:
    """The likeliest token of every row."""
    return logits_BV.argmax(-1)


def banned_tokens(vlm: "VLM") -> list[int]:
    """What can never be generated: the picture placeholder and the padding token."""
    return [vlm.backbone.image_token_id, vlm.pad_id]


def all_rows_done(done_B: Tensor) -> bool:
    """Whether every row has stopped."""
    return bool(done_B.all())


def decode(
    state: DecodeState,
    sampler: Sampler,
    stop_ids: set[int],
    max_new_tokens: int,
    stop_text: StopText | None = None,
    all_done: Callable[[Tensor], bool] = all_rows_done,
    look_every: int = 1,
    done_B: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Tensor]:
    """Token ids [B], step by step, until every row has stopped; a stopped row gives the padding token.

    The sampler gets logits [R, V] without `banned_tokens`, and which of the B rows they are: rows that have stopped
    leave the batch after every `COMPACT` tokens. A row stops at any of `stop_ids` and behind `stop_text`. Every
    `look_every` tokens `all_done` decides from bool [B] whether to end, which waits for the device; ranks whose
    forwards wait for each other have to agree. done_B: rows that have stopped before the first token.
    `constraint` leaves only tokens that finish a begun box.
    """
    device = state.logits_BV.device
    banned, stop_S = (
        torch.tensor(banned_tokens(state.vlm), device=device),
        torch.tensor(sorted(stop_ids), device=device),
    )
    rows_R = torch.arange(len(state.logits_BV), device=device)
    done_B = torch.zeros_like(rows_R, dtype=torch.bool) if done_B is None else done_B
    if bool(done_B.any()):
        state, rows_R = state.without(done_B)
    said_B = torch.zeros_like(done_B, dtype=torch.long)  # characters of the stop text that an answer ends with
    for count in range(max_new_tokens):
        logits_RV = state.logits_BV.index_fill(1, banned, -torch.inf)
        if constraint is not None:
            rows = rows_R.tolist()
            allowed_RV = constraint.allowed(rows, max_new_tokens - count - 1).to(device)
            logits_RV = logits_RV.masked_fill(~allowed_RV, -torch.inf)
        token_R = sampler(logits_RV, rows_R)
        if constraint is not None:
            constraint.read(token_R.tolist(), rows)
        token_B = torch.full_like(done_B, state.vlm.pad_id, dtype=torch.long).index_copy(0, rows_R, token_R)
        token_B = torch.where(done_B, state.vlm.pad_id, token_B)
        yield token_B
        done_B = done_B | torch.isin(token_B, stop_S)
        if stop_text is not None:
            said_B = stop_text.after(said_B, token_B)
            done_B = done_B | stop_text.whole(said_B)
        if count + 1 == max_new_tokens or ((count + 1) % look_every == 0 and all_done(done_B)):
            return
        if (count + 1) % COMPACT == 0 and len(rows_R) > 1:
            state, kept_R = state.without(done_B[rows_R])
            rows_R = rows_R[kept_R]
        state.step(token_B[rows_R])


def constraint_of(vlm: "VLM", samples: Sequence[Any], vocabulary: int, group: int = 1) -> Constraint:
    """What `group` answers to each sample may say, one after the other: boxes of the picture that it asks about."""
    sizes = [(sample.sizes or [(1, 1)])[sample.answer_image] for sample in samples for _ in range(group)]
    return Constraint(vlm.tokenizer, vlm.codec, sizes, vocabulary, {int(vlm.tokenizer.eos_token_id)})


def look_every(device: torch.device) -> int:
    """Tokens between two looks at whether all rows have stopped: a look costs nothing on a CPU."""
    return 1 if device.type == "cpu" else COMPACT


class Generated(NamedTuple):
    """One answer; `cut_off`: it ended at the token limit, not by itself."""

    text: str
    cut_off: bool


@torch.no_grad()
def generate_answers(
    vlm: "VLM", batch: Mapping[str, Any], max_new_tokens: int, alpha: float | None = None, constrain: bool = False
) -> list[Generated]:
    """Greedy answers; marks of the codecs stay in the text, the end mark and padding do not.

    constrain: a begun box is always finished as the codec writes it (`models.constrain`); its pictures have the size of
    the one that the sample asks about.
    """
    stop = {vlm.tokenizer.eos_token_id}
    all_done = all_ranks_done if is_sharded(vlm) else all_rows_done
    with kept_whole(vlm):
        state = prefill(vlm, batch, alpha)
        looks = look_every(state.logits_BV.device)
        constraint = constraint_of(vlm, batch["samples"], state.logits_BV.shape[1]) if constrain else None
        steps = decode(state, greedy, stop, max_new_tokens, None, all_done, looks, constraint=constraint)
        tokens = list(steps)
    drop = {*stop, vlm.pad_id}
    answers = []
    for row in torch.stack(tokens, 1).tolist():
        text = vlm.tokenizer.decode([t for t in row if t not in drop], skip_special_tokens=False).strip()
        answers.append(Generated(text, not stop & set(row)))
    return answers


def generate_texts(vlm: "VLM", batch: Mapping[str, Any], max_new_tokens: int, alpha: float | None = None) -> list[str]:
    """The texts of `generate_answers`."""
    return [answer.text for answer in generate_answers(vlm, batch, max_new_tokens, alpha)]
