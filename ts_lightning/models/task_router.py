"""The task router: a small BERT that reads a prompt and names the path that answers it (section 3.2 of the paper).

Legend: B prompts, T tokens, H hidden size, C classes (understanding, then one for each package).
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ts_lightning.grounding.tasks import UNDERSTANDING

SHIPPED = Path(__file__).parent / "shipped_router"
FILES = ("router.safetensors", "router.json", "tokenizer.json")
LENGTH = 96  # a longer prompt is read from both ends
_NUMBER = r"\s*\d+(?:\.\d+)?\s*"
_NUMBERS = rf"[\[(]{{1,2}}{_NUMBER}(?:,{_NUMBER}){{1,3}}[\])]{{1,2}}"  # [x, y, x, y], (x, y), [[x, y, x, y]]
_REGION = re.compile(rf"\{{region:\d+\}}|#\d+\b|{_NUMBERS}(?:\s*,\s*{_NUMBERS})?", re.ASCII)
_MARK = re.compile(r"<\|?/?\w{1,32}\|?>")  # of pictures, boxes and phrases, in any model's notation
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[REGION]")


class TaskRouter:
    """From a prompt to `understanding` or the name of a package; int8 weights, computed on the CPU.

    Calling it with one prompt gives the task. `probabilities` reads many at once.
    """

    def __init__(self, tasks: Sequence[str], bert: BertModel, head: nn.Module, tokenizer: Tokenizer) -> None:
        if not tasks or tasks[0] != UNDERSTANDING:
            raise ValueError(f"task router: seen tasks {list(tasks)}, expected understanding to be the first")
        self.tasks, self.bert, self.head, self.tokenizer = tuple(tasks), bert, head, tokenizer

    def __call__(self, prompt: str) -> str:
        """The task of one prompt."""
        return self.tasks[int(self.probabilities([prompt])[0].argmax())]

    @torch.no_grad()
    def probabilities(self, prompts: Sequence[str]) -> Tensor:
        """[B, C] probabilities of the tasks. A prompt without a letter or a digit asks for no place: understanding."""
        chosen_BC = self.logits(prompts).softmax(-1)
        for row_C, prompt in zip(chosen_BC, prompts, strict=True):
            if not any(map(str.isalnum, clean(prompt))):
                row_C.copy_(F.one_hot(torch.tensor(0), len(self.tasks)))
        return chosen_BC

    def logits(self, prompts: Sequence[str]) -> Tensor:
        """[B, C] logits, with gradient where the weights are still floating point."""
        ids_BT, valid_BT = self.read(prompts)
        mask = None if bool(valid_BT.all()) else valid_BT
        hidden_BTH = self.bert(input_ids=ids_BT, attention_mask=mask).last_hidden_state
        return self.head(hidden_BTH[:, 0])

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[B, T] token ids and which of them are real."""
        known = self.tokenizer.token_to_id
        rows = []
        for text in prompts:
            ids = self.tokenizer.encode(clean(text), add_special_tokens=False).ids
            if len(ids) >= LENGTH:
                ids = ids[: LENGTH // 2] + ids[1 - LENGTH // 2 :]
            rows.append([known("[CLS]"), *ids])
        length = max(map(len, rows))
        ids_BT = torch.tensor([row + [known("[PAD]")] * (length - len(row)) for row in rows])
        return ids_BT, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])

    def save(self, folder: str | Path) -> None:
        """Write int8 weights, scales, zero points and biases as safetensors, the classes, and the tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"bert.{k}": v for k, v in self.bert.state_dict().items()}
        state |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / FILES[0], metadata={"format": "pt"})
        stored = {"format": 1, "tasks": list(self.tasks), "bert": _sizes(self.bert.config)}
        (folder / FILES[1]).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
        self.tokenizer.save(str(folder / FILES[2]), pretty=False)

    @classmethod
    def load(cls, folder: str | Path = SHIPPED) -> "TaskRouter":
        """A saved router (by default the one that comes with the package); ValueError in one line if it is no good."""
        folder = Path(folder)
        try:
            stored = json.loads((folder / FILES[1]).read_text())
            tasks, tokenizer = stored["tasks"], Tokenizer.from_file(str(folder / FILES[2]))
            state = load_file(folder / FILES[0])
            router = untrained(tasks, tokenizer, **stored["bert"]).quantized()
            for name, module in (("bert", router.bert), ("head", router.head)):
                own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
                module.load_state_dict(own)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0][:120]
            raise ValueError(f"task router {folder}: seen {reason!r}, expected {', '.join(FILES)} of save") from None
        return router

    def quantized(self) -> "TaskRouter":
        """The same router with int8 matrices."""
        return TaskRouter(self.tasks, _quantize(self.bert.eval()), _quantize(self.head.eval()), self.tokenizer)

    def floating(self) -> "TaskRouter":
        """The same router with fp32 matrices, to be trained on."""
        router = untrained(self.tasks, self.tokenizer, **_sizes(self.bert.config))
        for mine, its in ((self.bert, router.bert), (self.head, router.head)):
            state = dict(mine.state_dict())
            for stem in [key.removesuffix("scale") for key in state if key.endswith("scale")]:
                scale, zero_point = state.pop(f"{stem}scale"), state.pop(f"{stem}zero_point").float()
                state[f"{stem}weight"] = (state[f"{stem}weight"].float() - zero_point[:, None]) * scale[:, None]
            its.load_state_dict(state)
        return router


class Int8Linear(nn.Module):
    """y = x W^T + b with W = (weight - zero_point) * scale, one scale and zero point for each output row."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        weight, scale, zero_point = to_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        bias = getattr(linear, "bias", None)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, in the dtype of `x`."""
        y = F.linear(x, self.weight.to(x.dtype)) - x.sum(-1, keepdim=True) * self.zero_point.to(x.dtype)
        y = y * self.scale
        return y if self.bias is None else y + self.bias


class Int8Embedding(Int8Linear):
    """Rows of an int8 table."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids` in fp32."""
        return (self.weight[ids].float() - self.zero_point[ids, None].float()) * self.scale[ids, None]


def to_int8(weight_RH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int8 values, scale [R] and zero point [R] (int8) that span each row's range, zero included."""
    low, high = weight_RH.amin(1).clamp(max=0), weight_RH.amax(1).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    zero_point = (-128 - low / scale).round().clamp(-128, 127)
    values = (weight_RH / scale[:, None] + zero_point[:, None]).round().clamp(-128, 127)
    return values.to(torch.int8), scale, zero_point.to(torch.int8)


def _quantize(module: Any) -> Any:
    if isinstance(module, nn.Linear):
        return Int8Linear(module)
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | nn.Embedding):
            setattr(module, name, Int8Linear(child) if isinstance(child, nn.Linear) else Int8Embedding(child))
        else:
            _quantize(child)
    return module


def clean(prompt: str) -> str:
    """A prompt as the router reads it: no marks, one word for any region, be it a mark of the prompt or numbers."""
    return _REGION.sub("[REGION]", _MARK.sub(" ", prompt))


def train_vocabulary(prompts: Iterable[str], vocab_size: int = 3000) -> Tokenizer:
    """A WordPiece tokenizer of lower-case words, made from the prompts."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((clean(prompt) for prompt in prompts), trainer)
    return tokenizer


def untrained(
    tasks: Sequence[str],
    tokenizer: Tokenizer,
    hidden_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    intermediate_size: int = 256,
    vocab_size: int | None = None,
) -> TaskRouter:
    """A router with fresh fp32 weights, to be trained."""
    config = BertConfig(
        vocab_size=vocab_size or tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=LENGTH,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,  # prompts are made without end: none is seen often
        attention_probs_dropout_prob=0.0,
    )
    bert = BertModel(config, add_pooling_layer=False)
    return TaskRouter(tasks, bert, nn.Linear(hidden_size, len(tasks)), tokenizer)


def _sizes(config: Any) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    return {name: getattr(config, name) for name in names}
