"""Where answers stop behind a text, whatever tokens spell it. Legend: B rows, V vocabulary, S places, C tokens."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ts_lightning.models.constrain import token_texts


class StopText:
    """How many characters of a text answers end with, token by token, without a look at what is on the device.

    A token may begin before the text and end behind it, as those of byte-level tokenizers do. A text is not found where
    a character of it is split between tokens.
    """

    def __init__(self, tokenizer: Any, text: str, vocabulary: int, device: torch.device) -> None:
        texts, places = token_texts(tokenizer, vocabulary), range(len(text))
        begins, ends = tuple(text[: i + 1] for i in places), tuple(text[i:] for i in places)
        # all others leave nothing of the text at the end, whatever stood there before
        near = [
            token
            for token, own in enumerate(texts)
            if own in text or text in own or own.endswith(begins) or own.startswith(ends)
        ]
        moves = [[0, *(_ends_with(text[:i] + texts[token], text) for token in near)] for i in places]
        self.length = len(text)
        self.moves_SC = torch.tensor([*moves, [len(text)] * (len(near) + 1)], device=device)
        self.column_V = torch.zeros(vocabulary, dtype=torch.long, device=device)
        self.column_V[near] = torch.arange(1, len(near) + 1, device=device)

    def after(self, said_B: Tensor, token_B: Tensor) -> Tensor:
        """[B] characters of the text at the end of answers that ended with `said_B` of them, one token later."""
        return self.moves_SC[said_B, self.column_V[token_B]]

    def whole(self, said_B: Tensor) -> Tensor:
        """Bool [B]: whether that is all of the text; it stays so."""
        return said_B == self.length


def stop_text(tokenizer: Any, text: str, vocabulary: int, device: torch.device) -> StopText:
    """`StopText`, made once: its table takes tenths of a second for a large vocabulary."""
    return _stop_text(tokenizer, len(tokenizer), text, vocabulary, device)


@lru_cache(2)
def _stop_text(tokenizer: Any, length: int, text: str, vocabulary: int, device: torch.device) -> StopText:
    return StopText(tokenizer, text, vocabulary, device)


def _ends_with(said: str, text: str) -> int:
    """How much of the text stands at the end of what was said; all of it where it was said anywhere."""
    return len(text) if text in said else max(i for i in range(len(text)) if said.endswith(text[:i]))
