"""From a sample to token ids, step ids and pixels; one picklable object per backbone."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ts_lightning.grounding.codecs import ScoutCodec, get_codec
from ts_lightning.grounding.steps import step_spans
from ts_lightning.models.pixels import load_pixels

UNDERSTANDING = "understanding"
_PLACEHOLDER = re.compile(r"<image>|\{region:(\d+)\}")


@dataclass
class ChatTemplate:
    """What stands around the turns: prefixes with their trailing spaces, and the end of an answer."""

    system: str = ""
    user: str = "USER: "
    assistant: str = " ASSISTANT:"
    end: str = "</s>"


@dataclass
class Encoder:
    """`encode(sample)` for one backbone.

    `image_tokens` is the number of placeholder tokens of one picture, `image_size` its side in pixels,
    `pixel_mode` is "stretch" or "pad". `max_length` bounds a row; a longer one is a ValueError.
    """

    tokenizer: PreTrainedTokenizerFast
    image_token: str
    image_tokens: int
    image_size: int
    max_length: int
    pixel_mode: str = "stretch"
    codec: ScoutCodec = field(default_factory=lambda: get_codec("scout"))
    template: ChatTemplate = field(default_factory=ChatTemplate)

    def __call__(self, sample: Any, for_generation: bool = False) -> dict[str, Any]:
        """The row of one sample: `input_ids` [T], `step_ids` [T] (-1 = no loss), `pixel_values` uint8 [N, 3, S, S].

        With `for_generation` the row ends where the last answer would begin. Steps are counted through all the
        assistant's turns. Raises ValueError, with the sample's key, for a row that can't be encoded.
        """
        text, spans = self.render(sample, for_generation)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        if len(ids) > self.max_length:
            raise ValueError(f"{sample.key}: seen {len(ids)} tokens, expected at most {self.max_length}")
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
            "pixel_values": self.pixels(sample.image_bytes, sample.key),
            "task": int(sample.task != UNDERSTANDING),
            "sample": sample.without_bytes(),
        }

    def render(self, sample: Any, for_generation: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The chat text, and the character span of every step of every answer (its end mark included)."""
        text, spans = self.template.system, []
        last = max((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), default=-1)
        for i, turn in enumerate(sample.turns):
            if turn.role == "user":
                text += self.template.user + self.expand(turn.text, sample)
                continue
            text += self.template.assistant
            if for_generation and i == last:
                return text, []
            starts = [a for a, _ in turn.steps or step_spans(turn.text)]
            pieces = [turn.text[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], None], strict=True)]
            pieces = [self.expand(piece, sample) for piece in pieces]
            pieces[0], pieces[-1] = " " + pieces[0], pieces[-1] + self.template.end
            for piece in pieces:
                spans.append((len(text), len(text) + len(piece)))
                text += piece
        return text, spans

    def expand(self, text: str, sample: Any) -> str:
        """`text` with its placeholders replaced: image tokens, and regions in the codec's notation."""

        def replace(match: re.Match[str]) -> str:
            if match[1] is None:
                return self.image_token * self.image_tokens
            region = sample.regions[int(match[1])]
            if not (region.boxes or region.box):
                raise ValueError(f"{sample.key}: seen {match[0]} without a box, expected a box or boxes for this codec")
            size = (sample.images[region.image].width, sample.images[region.image].height)
            return self.codec.format(region.boxes if region.boxes else [region.box], size)

        return _PLACEHOLDER.sub(replace, text)

    def pixels(self, images: list[bytes], key: str = "image") -> Tensor:
        """uint8 [N, 3, S, S] of encoded pictures; ValueError with the key for a broken one."""
        try:
            loaded = [load_pixels(data, self.image_size, self.pixel_mode) for data in images]
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return torch.stack(loaded) if loaded else torch.empty(0, 3, self.image_size, self.image_size, dtype=torch.uint8)

    def token_ids(self, texts: list[str]) -> list[int]:
        """Ids of texts that must each be one token; ValueError names the first that is not."""
        ids = []
        for text in texts:
            found = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(found) != 1:
                raise ValueError(f"train_token_rows: seen {text!r} as {len(found)} tokens, expected one token")
            ids.append(found[0])
        return ids
