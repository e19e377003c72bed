"""Decoding in which a begun box is always finished in the codec's notation, for any codec and any tokenizer.

It works on texts: the notation is taken from what the codec writes, tokens count by the text that they add.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.coordinates import Size

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DIGITS = re.compile(r"[0-9.]*")
_BYTE = re.compile(r"<0x([0-7][0-9A-F])>")
_BASE = (0.1, 0.2, 0.6, 0.7)
KEPT = 4096  # masks that are kept for states that come again


class Notation:
    """How a codec writes one box in pictures of one size: an opening, four numbers with what stands between, an end.

    Numbers are those of the grid that read back as themselves; the second corner is right of and below the first.
    ValueError for a codec that writes no boxes, and for a picture too narrow for its grid.
    """

    def __init__(self, codec: Codec, size: Size) -> None:
        if "box" not in codec.kinds:
            raise ValueError(f"constrain: seen codec {codec.name}, which writes no boxes, expected another")
        texts = [codec.format([_BASE], size)]
        for i in range(4):
            texts.append(codec.format([tuple(v + 0.1 * (i == j) for j, v in enumerate(_BASE))], size))  # type: ignore[list-item]
        found = [list(_NUMBER.finditer(text)) for text in texts]
        pairs = [list(zip(found[0], other, strict=True)) for other in found[1:]]
        moved = [[k for k, (a, b) in enumerate(pair) if a[0] != b[0]] for pair in pairs]
        slots = sorted(k for places in moved for k in places)
        if len(slots) != 4:
            seen = f"a picture of {size[0]} x {size[1]} pixels, in which some boxes are written alike"
            raise ValueError(f"constrain: seen {seen} by codec {codec.name}, expected one that is less narrow")
        self.order = [next(c for c, places in enumerate(moved) if k in places) for k in slots]  # coordinate of a slot
        marks = [0, *(edge for k in slots for edge in found[0][k].span()), len(texts[0])]
        parts = [texts[0][marks[i] : marks[i + 1]] for i in range(0, 10, 2)]
        first = next((mark for mark in codec.special_tokens if parts[0].startswith(mark)), parts[0])
        self.opening, self.literals = first, [parts[0][len(first) :], *parts[1:]]  # a mark of its own begins a box
        corner = _NUMBER.findall(codec.format([(0.0, 0.0, 1.0, 1.0)], size))[slots[0]]
        width = len(corner) if corner[0] == "0" and "." not in corner else 1
        self.values = [_axis(codec, size, axis, width) for axis in (0, 1)]
        self.ends = [max(values.values()) for values in self.values]
        self.prefixes = [_prefixes(values) for values in self.values]
        self.longest = sum(map(len, self.literals)) + 4 * max(len(t) for values in self.values for t in values)
        self.letters = set("0123456789.").union(*self.literals)

    def inside(self, text: str) -> int | None:
        """Of a text that follows an opening: where its box ends, -1 for the beginning of a box, None for no box."""
        at, known = 0, dict[int, float]()
        for k, literal in enumerate(self.literals):
            if not text.startswith(literal, at):
                return -1 if literal.startswith(text[at:]) else None
            at += len(literal)
            if k == 4:
                return at
            coordinate = self.order[k]
            axis = coordinate % 2
            other = known.get((coordinate + 2) % 4)
            match = _DIGITS.match(text, at)
            number = match[0] if match else ""
            # a literal may begin with a character of numbers: take what is a number of the grid
            while number and number not in self.prefixes[axis]:
                number = number[:-1]
            rest = text[at + len(number) :]
            if not rest:
                return -1 if number == "" or self._fits(self.prefixes[axis][number], coordinate, other) else None
            if number not in self.values[axis]:
                return None
            value = self.values[axis][number]
            if not self._fits((value, value), coordinate, other):
                return None
            known[coordinate] = value
            at += len(number)
        return None

    def _fits(self, span: tuple[float, float], coordinate: int, other: float | None) -> bool:
        """Whether a number of this span leaves, or makes, a box that is not empty."""
        axis, low = coordinate % 2, coordinate < 2
        if other is None:
            return span[0] < self.ends[axis] if low else span[1] > min(self.values[axis].values())
        return span[0] < other if low else span[1] > other

    def state(self, text: str) -> str | None:
        """Of a text: what is still open, from its opening on; "" for nothing, None where a begun box is none."""
        at = text.find(self.opening)
        while at >= 0:
            start = at + len(self.opening)
            end = self.inside(text[start:])
            if end is None:
                return None
            if end < 0:
                return text[at:]
            at = text.find(self.opening, start + end)
        return ""

    def tail(self, text: str) -> str:
        """The longest end of a text that may become an opening."""
        for length in range(min(len(self.opening) - 1, len(text)), 0, -1):
            if self.opening.startswith(text[-length:]):
                return text[-length:]
        return ""


class Constraint:
    """Which tokens may follow, for every row of a batch; `sizes` are those of the rows' pictures.

    Rows may `join` and `leave`. A box is not begun where the tokens that are left might not be enough for it. Masks are
    made on the CPU, token by token: it waits for the device.
    """

    def __init__(
        self, tokenizer: Any, codec: Codec, sizes: Sequence[Size], vocabulary: int, stop_ids: set[int]
    ) -> None:
        self.texts = token_texts(tokenizer, vocabulary)
        self.pixels = codec.space.grid == "pixels" or codec.space.frame == "padded_square"
        self.notation = lru_cache(KEPT)(partial(Notation, codec))
        self.stop_ids = stop_ids
        self.by_first = dict[str, list[tuple[int, str]]]()  # tokens by the first letter of their texts
        for token, text in enumerate(self.texts):
            if text:
                self.by_first.setdefault(text[0], []).append((token, text))
        self.notations: dict[int, Notation] = {}
        self.open: dict[int, str] = {}  # of every row: the begun box, or the end of the text that may begin one
        self.begun: dict[int, bool] = {}
        self._mask = lru_cache(KEPT)(self._made)
        for row, size in enumerate(sizes):
            self.join(row, size)

    def join(self, row: int, size: Size) -> None:
        """A further row, whose picture has this size."""
        self.notations[row] = self.notation(size if self.pixels else (1, 1))
        self.open[row], self.begun[row] = "", False

    def leave(self, row: int) -> None:
        """A row that has ended, also before it joined."""
        for kept in (self.notations, self.open, self.begun):
            kept.pop(row, None)

    def allowed(self, rows: Sequence[int], tokens_left: int) -> Tensor:
        """Bool [R, V] for the next token of some rows; `tokens_left` may follow it."""
        masks = []
        for row in rows:
            notation = self.notations[row]
            may_begin = tokens_left >= notation.longest
            masks.append(self._mask(notation, self.open[row], self.begun[row], may_begin))
        return torch.stack(masks)

    def read(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Take note of the tokens that were chosen."""
        for row, token in zip(rows, tokens, strict=True):
            notation = self.notations[row]
            text = self.open[row] + self.texts[token]
            state = notation.state(text)
            self.begun[row] = bool(state)
            self.open[row] = state or notation.tail(text)

    def _made(self, notation: Notation, before: str, begun: bool, may_begin: bool) -> Tensor:
        mask = torch.full((len(self.texts),), not begun)
        for token, text in self._candidates(notation, before, begun):
            if begun or notation.opening in before + text:
                state = notation.state(before + text)
                same = begun and state == before + text
                mask[token] = state == "" or same or (state is not None and may_begin)
        mask[list(self.stop_ids)] &= not begun
        if not mask.any():
            expected = "expected a tokenizer with a token for each digit"
            raise ValueError(f"constrain: seen no token that goes on after {before[-60:]!r}, {expected}")
        return mask

    def _candidates(self, notation: Notation, before: str, begun: bool) -> Iterator[tuple[int, str]]:
        """Tokens that have to be looked at: those that may go on with a begun box, or end an opening."""
        for first, words in self.by_first.items():
            if not begun:
                yield from (word for word in words if notation.opening[-1] in word[1])
            elif first in notation.letters and notation.state(before + first) is not None:
                yield from words


def token_texts(tokenizer: Any, vocabulary: int) -> Sequence[str]:
    """What each token adds to a text, "" for ids without one."""
    return _texts(tokenizer, min(len(tokenizer), vocabulary), vocabulary)


@lru_cache(2)  # seconds for a large vocabulary
def _texts(tokenizer: Any, length: int, vocabulary: int) -> tuple[str, ...]:
    texts = []
    for token, raw in enumerate(tokenizer.convert_ids_to_tokens(list(range(length)))):
        if raw is None:
            texts.append("")
        elif match := _BYTE.fullmatch(raw):
            texts.append(chr(int(match[1], 16)))
        elif "\u2581" in raw:  # SentencePiece's blank, which decode() would strip
            texts.append(raw.replace("\u2581", " "))
        else:
            texts.append(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return (*texts, *[""] * (vocabulary - len(texts)))


def _axis(codec: Codec, size: Size, axis: int, width: int) -> dict[str, float]:
    """The numbers of one axis that read back as themselves, by their text."""
    space = codec.space
    low, high = (space.encode([(v, v)], size)[axis] for v in (0.0, 1.0))
    step = 10.0 ** -int(space.grid.removeprefix("decimals:")) if space.grid.startswith("decimals:") else 1.0
    found = {}
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        pair = [low + (high - low) / 2] * 2
        pair[axis] = value
        text = space.text(value).zfill(width)
        if space.text(space.encode(space.decode(pair, size), size)[axis]).zfill(width) == text:
            found[text] = float(text)
    return found


def _prefixes(values: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Smallest and largest number that each beginning of a number's text may become."""
    found: dict[str, tuple[float, float]] = {}
    for text, value in values.items():
        for end in range(1, len(text) + 1):
            low, high = found.get(text[:end], (value, value))
            found[text[:end]] = min(low, value), max(high, value)
    return found
