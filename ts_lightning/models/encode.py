"""From a sample to token ids, step ids and pixels; one picklable object per backbone."""

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerFast

from ts_lightning.grounding.codecs import Codec, get_codec
from ts_lightning.grounding.region_text import region_text
from ts_lightning.grounding.steps import step_cuts
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.models.packing import pack_questions
from ts_lightning.models.pixels import recent_pixels

_PLACEHOLDER = re.compile(r"<image>(\n?)|\{region:(\d+)\}")
# Marks that records may hold as plain text: reasoning answers are stored with them.
STORED_MARKS = {"<think>", "</think>", "<answer>", "</answer>"}
_ESCAPE = "\u200b"  # a zero-width space inside a mark: it reads the same and is no token


@dataclass
class ChatTemplate:
    """What stands around the turns: prefixes with their trailing spaces, and the end of an answer.

    `end` is the mark that ends an answer, `between` what stands from there to a next question's prefix, without a
    loss. `blank` begins every answer; `after_picture` stands where a record has a new line behind a picture mark.
    `user_picture` is the prefix of a question that begins with a picture, `earlier` that of all answers but the last
    (blank included), where a model has others for them.
    """

    system: str = ""
    user: str = "USER: "
    assistant: str = " ASSISTANT:"
    end: str = "</s>"
    blank: str = " "
    after_picture: str = "\n"
    user_picture: str | None = None
    earlier: str | None = None
    between: str = ""

    def before_question(self, text: str) -> str:
        """The prefix of a question."""
        return self.user if self.user_picture is None or not text.startswith("<image>") else self.user_picture


@dataclass
class Encoder:
    """`encode(sample)` for one backbone.

    `image_tokens` is the number of placeholder tokens of one picture, `image_size` its side in pixels,
    `pixel_mode` is "stretch" or "pad". `max_length` bounds a row; a longer one is a ValueError. `skills` names tasks 1,
    2, ... (none: any skill is task 1). Where skills added tokens, `tokenizer` has them all and reads any answer;
    `tokenizers` are those of tasks 0, 1, ..., each with the tokens of its own skill alone, and `shared_ids` the ids in
    `tokenizer` of what one of them numbers otherwise. `packs`: questions may share a row; `joins`: so may rows of
    different records. Small to pickle: workers of a loader that are not forked get a copy.
    """

    tokenizer: PreTrainedTokenizerFast
    image_token: str
    image_tokens: int
    image_size: int
    max_length: int
    pixel_mode: str = "stretch"
    codec: Codec = field(default_factory=lambda: get_codec("scout"))
    template: ChatTemplate = field(default_factory=ChatTemplate)
    skills: tuple[str, ...] = ()
    tokenizers: tuple[PreTrainedTokenizerFast, ...] = ()
    shared_ids: dict[int, int] = field(default_factory=dict)
    packs: bool = True
    joins: bool = True

    def __call__(self, sample: Any, for_generation: bool = False, task: str | None = None) -> dict[str, Any]:
        """The row of one sample: `input_ids` [T], `step_ids` [T] (-1 = no loss), `pixel_values` uint8 [N, 3, S, S].

        With `for_generation` the row ends where the last answer would begin. `task` answers it (None: the record's
        own). Steps are counted through all the assistant's turns. Raises ValueError, with the sample's key, for a row
        that can't be encoded.
        """
        index = self.task_index(task or sample.task, sample.key)
        encoder = self.of_task(index)
        text, spans = encoder.render(sample, for_generation)
        encoded = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor([encoder.shared_ids.get(i, i) for i in encoded["input_ids"]], dtype=torch.long)
        if len(ids) > self.max_length:
            image_id: Any = encoder.tokenizer.convert_tokens_to_ids(self.image_token)
            raise ValueError(
                f"{sample.key}: seen {len(ids)} tokens, expected at most {self.max_length}; "
                f"{int(ids.eq(image_id).sum())} are of pictures: a larger max_length of the backbone, or a smaller "
                "max_pixels where it has one"
            )
        step_ids = torch.full_like(ids, -1)
        step = 0
        for token, (_, end) in enumerate(encoded["offset_mapping"]):
            while step < len(spans) and end > spans[step][1]:  # a token may begin with the blank before its step
                step += 1
            if step < len(spans) and end > spans[step][0]:
                step_ids[token] = step
        return {
            "input_ids": ids,
            "step_ids": step_ids,
            **encoder.picture_tensors(sample, ids),
            "task": index,
            "sample": sample.without_bytes(),
        }

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of questions about the same pictures as few rows (`packing.pack_questions`)."""
        if not self.packs:
            raise ValueError("questions_per_row: seen several for a model whose pictures see the question, expected 1")
        image_id: Any = self.tokenizer.convert_tokens_to_ids(self.image_token)
        return pack_questions(rows, image_id)

    def task_index(self, task: str, key: str = "task") -> int:
        """0 for understanding, k for the k-th skill; ValueError for a skill that has no package."""
        if task == UNDERSTANDING:
            return 0
        if self.skills and task not in self.skills:
            raise ValueError(f"{key}: seen task {task!r}, expected {', '.join((UNDERSTANDING, *self.skills))}")
        return 1 + self.skills.index(task) if self.skills else 1

    def render(self, sample: Any, for_generation: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The chat text, and the character span of every step of every answer (its end mark included)."""
        text, spans = self.template.system, []
        mentioned: set[int] = set()
        last = max((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), default=-1)
        for i, turn in enumerate(sample.turns):
            if turn.role == "user":
                text += self.template.before_question(turn.text) + self.expand(turn.text, sample)
                if i + 2 == len(sample.turns):
                    text += self._after_question(sample)
                continue  # regions of questions are given, not mentioned: every one is written in full
            earlier = self.template.earlier if i < last else None
            text += self.template.assistant if earlier is None else earlier
            if for_generation and i == last:
                return text, []
            cuts = step_cuts(turn.text, turn.steps)
            pieces = [turn.text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
            pieces = [self.expand(piece, sample, mentioned) for piece in pieces]
            # two steps that share a mark would write it where they meet
            pieces = [_ESCAPE * self._in_mark(turn.text, a) + piece for a, piece in zip(cuts, pieces, strict=True)]
            pieces[0] = (self.template.blank if earlier is None else "") + pieces[0]
            pieces[-1] += self.template.end
            for piece in pieces:
                spans.append((len(text), len(text) + len(piece)))
                text += piece
            if i + 1 < len(sample.turns):
                text += self.template.between
        return text, spans

    def expand(self, text: str, sample: Any, mentioned: set[int] | None = None) -> str:
        """`text` with its placeholders replaced: image tokens, and regions in the codec's notation.

        In answers, `mentioned` collects the regions that have been named before. A token of the tokenizer that stands
        in the text itself is escaped: data can't write an end mark, a picture or a box.
        """
        pieces, end, picture = [], 0, 0
        for match in _PLACEHOLDER.finditer(text):
            pieces.append(self.escape(text[end : match.start()]))
            if match[2] is None:
                pieces.append(self.picture_text(picture, sample) + (self.template.after_picture if match[1] else ""))
                picture += 1
            else:
                before, after = text[: match.start()], text[match.end() :]
                try:
                    named = region_text(self.codec, sample, int(match[2]), before, after, mentioned, self.escape)
                except ValueError as error:
                    raise ValueError(f"{sample.key}: {error}") from None
                pieces.append(named)
            end = match.end()
        return "".join(pieces) + self.escape(text[end:])

    def _after_question(self, sample: Any) -> str:
        """What a configuration asks behind the question: its marks are the model's, but for pictures."""
        if self.image_token in sample.after_question:
            raise ValueError(f"{sample.key}: after_question: seen {self.image_token}, expected no mark of a picture")
        return str(sample.after_question)

    def escape(self, text: str) -> str:
        """`text` without tokens that only the encoder may write."""
        return self._marks.sub(lambda start: start[0] + _ESCAPE, text)

    def _in_mark(self, text: str, place: int) -> bool:
        """Whether a cut at `place` goes through a mark."""
        return any(start.start() < place < start.end(1) for start in self._marks.finditer(text))

    def of_task(self, index: int) -> "Encoder":
        """The encoder of one task's rows: to it the tokens of other skills are text, and no marks."""
        return self._of_tasks[index] if self.tokenizers else self

    @cached_property
    def _of_tasks(self) -> list["Encoder"]:
        encoders = []
        for own in self.tokenizers:
            every = self.tokenizer.get_added_vocab()
            shared = {i: every[text] for text, i in own.get_added_vocab().items() if i != every[text]}
            encoders.append(replace(self, tokenizer=own, tokenizers=(), shared_ids=shared))
        return encoders

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        added = {*self.tokenizer.get_added_vocab(), *self.codec.special_tokens, self.image_token} - STORED_MARKS
        # some tokenizers (Phi's) have added tokens for runs of blanks: those are text, no marks
        longest_first = sorted((mark for mark in added if len(mark) > 1 and mark.strip()), key=len, reverse=True)
        # the first character of every mark, so that marks which overlap are all broken
        first = "".join(sorted({re.escape(mark[0]) for mark in longest_first}))
        return re.compile(f"(?=[{first}])(?=({'|'.join(map(re.escape, longest_first))})).", re.DOTALL)

    def picture_text(self, index: int, sample: Any) -> str:
        """What stands for the sample's picture `index` in the text."""
        return self.image_token * self.image_tokens

    def picture_tensors(self, sample: Any, ids_T: Tensor) -> dict[str, Tensor]:
        """What a row holds of its pictures; a backbone with other positions than 0, 1, 2 ... adds `position_ids`."""
        return {"pixel_values": self.pixels(sample.image_bytes, sample.key)}

    def pixels(self, images: list[bytes], key: str = "image") -> Tensor:
        """uint8 [N, 3, S, S] of encoded pictures; ValueError with the key for a broken one."""
        try:
            loaded = [recent_pixels(data, self.image_size, self.pixel_mode) for data in images]
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return torch.stack(loaded) if loaded else torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of what the image processor makes of an image."""
        return self.image_size, self.image_size

    def seen_picture(self, data: bytes) -> Image.Image:
        """The picture as the model sees it, for people to look at."""
        return Image.fromarray(self.pixels([data])[0].permute(1, 2, 0).numpy())

    def pictures(self, batch: Mapping[str, Any]) -> list[Image.Image]:
        """All pictures of a batch as the model sees them: from them its own image processor makes the same pixels."""
        if "pixel_values" not in batch:
            raise ValueError(f"{type(self).__name__}: seen pictures in a processor's own form, expected uint8 pixels")
        return [Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()) for pixels in batch["pixel_values"]]

    def tokens_of_pictures(self, batch: Mapping[str, Any]) -> list[int]:
        """How many placeholder tokens each picture of a batch has."""
        return [self.image_tokens] * len(batch["pixel_values"])

    def with_tokens(self, texts: list[str]) -> tuple["Encoder", list[list[int]]]:
        """An encoder for which each text is one token, and the pieces that spell each without."""
        pieces = [self._pieces(text) for text in texts]
        if not texts:
            return self, pieces
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in texts])
        return replace(self, tokenizer=tokenizer), pieces

    def with_skill(self, name: str, texts: list[str]) -> tuple["Encoder", list[list[int]]]:
        """An encoder with one more skill, in whose rows each text is one token, and the base's pieces that spell each.

        Rows of every other task stay as they are.
        """
        tokenizers = self.tokenizers or (self.tokenizer,)
        own, pieces = self.of_task(0).with_tokens(texts)
        first = self.tokenizer is tokenizers[0]  # to add tokens
        every = own if first else self.with_tokens(self.no_tokens_yet(texts))[0]
        skills, tokenizers = (*self.skills, name), (*tokenizers, own.tokenizer)
        return replace(self, tokenizer=every.tokenizer, skills=skills, tokenizers=tokenizers), pieces

    def no_tokens_yet(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that this tokenizer does not have as a token; "codec" stands for the codec's marks."""
        named = [t for text in texts for t in (self.codec.special_tokens if text == "codec" else [text])]
        known = self.tokenizer.get_vocab()
        return [text for text in dict.fromkeys(named) if text not in known]

    def row_tokens(self, names: Sequence[str] | None) -> list[str]:
        """The texts that `train_token_rows` names; "codec" is what the codec writes coordinates with.

        Of the codec's, those that are several tokens here (a number, digit by digit) are left out with one warning.
        """
        texts: list[str] = []
        for name in names or ():
            own = self.codec.coordinate_tokens() if name == "codec" else [name]
            whole = [text for text in own if name != "codec" or len(self._pieces(text)) == 1]
            if left := len(own) - len(whole):
                warnings.warn(
                    f"train_token_rows: {left} of the {len(own)} texts of codec {self.codec.name} are several tokens "
                    "in this tokenizer: their rows don't train",
                    stacklevel=2,
                )
            texts += whole
        return list(dict.fromkeys(texts))

    def _pieces(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def token_ids(self, texts: Sequence[str]) -> list[int]:
        """Ids of texts that must each be one token; ValueError names the first that is not."""
        ids = []
        for text in texts:
            found = self._pieces(text)
            if len(found) != 1:
                raise ValueError(f"train_token_rows: seen {text!r} as {len(found)} tokens, expected one token")
            ids.append(self.shared_ids.get(found[0], found[0]))
        return ids


@dataclass
class TaskEncoder:
    """`encoder` for questions whose task is chosen by `task_of(prompt)`, in place of the record's own."""

    encoder: Encoder
    task_of: Callable[[str], str]

    def __call__(self, sample: Any, for_generation: bool = False) -> dict[str, Any]:
        """As `Encoder`; rows with their answers, which are trained on, keep the record's task."""
        if not for_generation:
            return self.encoder(sample)
        prompt = next(turn.text for turn in reversed(sample.turns) if turn.role == "user")
        return self.encoder(sample, True, self.task_of(prompt))

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As `Encoder.pack`."""
        return self.encoder.pack(rows)

    @property
    def packs(self) -> bool:
        """As of `encoder`."""
        return self.encoder.packs

    @property
    def joins(self) -> bool:
        """As of `encoder`."""
        return self.encoder.joins
