"""Decoding in which a begun box is always finished in the codec's notation, for any codec and any tokenizer.

It works on texts: the notation is taken from what the codec writes, tokens count by the text that they add.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.coordinates import Size

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DIGITS = re.compile(r"[0-9.]*")
_BYTE = re.compile(r"<0x([0-7][0-9A-F])>")
_BASE = (0.1, 0.2, 0.6, 0.7)
KEPT = 4096  # masks that are kept for states that come again


class Place(NamedTuple):
    """Where in a begun box a text ends: in which of its nine parts, and what is written of that.

    Parts are a literal, a number, and so on to the last literal. known: the coordinates that later numbers have to fit;
    those of an axis whose two numbers are written are None again, so that like places are one.
    """

    part: int = 0
    written: str = ""
    known: tuple[float | None, ...] = (None,) * 4


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
        self.starts, self.ends = ([side(values.values()) for values in self.values] for side in (min, max))
        self.prefixes = [_prefixes(values) for values in self.values]
        self.longest = sum(map(len, self.literals)) + 4 * max(len(t) for values in self.values for t in values)
        self.letters = set("0123456789.").union(*self.literals)

    def go_on(self, place: Place, text: str, at: int = 0) -> tuple[Place | None, int] | None:
        """Follow a text from `at` on: (place at its end, its length), (None, where the box ends), None for no box."""
        part, written, known = place
        while True:
            if part % 2 == 0:
                missing = self.literals[part // 2][len(written) :]
                if not text.startswith(missing, at):
                    rest = text[at:]
                    return (Place(part, written + rest, known), len(text)) if missing.startswith(rest) else None
                at += len(missing)
                if part == 8:
                    return None, at
            else:
                coordinate = self.order[part // 2]
                axis, opposite = coordinate % 2, (coordinate + 2) % 4
                match = _DIGITS.match(text, at)
                number = written + (match[0] if match else "")
                # a literal may begin with a character of numbers: take what is a number of the grid
                while number and number not in self.prefixes[axis]:
                    number = number[:-1]
                at += len(number) - len(written)
                span = self.prefixes[axis][number] if number else None
                if at == len(text):
                    fits = span is None or self._fits(span, coordinate, known[opposite])
                    return (Place(part, number, known), at) if fits else None
                value = self.values[axis].get(number)
                if value is None or not self._fits((value, value), coordinate, known[opposite]):
                    return None
                known = _with(known, coordinate, value) if known[opposite] is None else _with(known, opposite, None)
            part, written = part + 1, ""

    def _fits(self, span: tuple[float, float], coordinate: int, other: float | None) -> bool:
        """Whether a number of this span leaves, or makes, a box that is not empty."""
        axis, low = coordinate % 2, coordinate < 2
        if other is None:
            return span[0] < self.ends[axis] if low else span[1] > self.starts[axis]
        return span[0] < other if low else span[1] > other

    def read(self, place: Place | str, text: str) -> Place | str | None:
        """Where a text ends that goes on from a place in a box, or from an end of a text that may become an opening.

        Either of the two again; None where a begun box is none.
        """
        at = 0
        while True:
            if isinstance(place, str):
                text = place + text[at:]
                start = text.find(self.opening)
                if start < 0:
                    return self.tail(text)
                place, at = Place(), start + len(self.opening)
            if (found := self.go_on(place, text, at)) is None or found[0] is not None:
                return found and found[0]
            place, at = "", found[1]

    def tail(self, text: str) -> str:
        """The longest end of a text that may become an opening."""
        for length in range(min(len(self.opening) - 1, len(text)), 0, -1):
            if self.opening.startswith(text[-length:]):
                return text[-length:]
        return ""


class Followers:
    """The tokens that may follow at a place, of one tokenizer in one codec's notation; what was found is kept."""

    def __init__(self, tokenizer: Any, codec: Codec, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self.texts = token_texts(tokenizer, vocabulary)
        self.pixels = codec.space.grid == "pixels" or codec.space.frame == "padded_square"
        self.stop_ids = stop_ids
        self.by_first = dict[str, list[tuple[int, str]]]()  # tokens by the first letter of their texts
        for token, text in enumerate(self.texts):
            if text:
                self.by_first.setdefault(text[0], []).append((token, text))
        self._notations = lru_cache(KEPT)(partial(Notation, codec))
        self.at = lru_cache(KEPT)(self._at)

    def notation(self, size: Size) -> Notation:
        """That of a box in a picture of this size."""
        return self._notations(size if self.pixels else (1, 1))

    def _at(self, notation: Notation, place: Place | str, may_begin: bool) -> Tensor:
        """Of a begun box: the tokens that may follow; else those that may not."""
        if isinstance(place, str):
            refused = [
                token for token, text in self._openings(notation) if not _follows(notation, place, text, may_begin)
            ]
            return torch.tensor(refused, dtype=torch.long)
        firsts = [first for first in self.by_first if first in notation.letters and notation.go_on(place, first)]
        words = (word for first in firsts for word in self.by_first[first])
        fit = [token for token, text in words if _follows(notation, place, text, may_begin)]
        fit = [token for token in fit if token not in self.stop_ids]
        if not fit:
            expected = "expected a tokenizer with a token for each digit"
            seen = f"no token that goes on after {place.written!r} in part {place.part + 1} of a box"
            raise ValueError(f"constrain: seen {seen}, {expected}")
        return torch.tensor(fit)

    def _openings(self, notation: Notation) -> Iterator[tuple[int, str]]:
        """The tokens that may end an opening."""
        return (word for words in self.by_first.values() for word in words if notation.opening[-1] in word[1])


@lru_cache(2)
def _followers(tokenizer: Any, length: int, codec: Codec, vocabulary: int, stop_ids: frozenset[int]) -> Followers:
    return Followers(tokenizer, codec, vocabulary, stop_ids)


class Constraint:
    """Which tokens may follow, for every row of a batch; `sizes` are those of the rows' pictures.

    Rows may `join` and `leave`. A box is not begun where the tokens that are left might not be enough for it. Masks are
    made on the CPU, token by token: it waits for the device.
    """

    def __init__(
        self, tokenizer: Any, codec: Codec, sizes: Sequence[Size], vocabulary: int, stop_ids: set[int]
    ) -> None:
        self.followers = _followers(tokenizer, len(tokenizer), codec, vocabulary, frozenset(stop_ids))
        self.notations: dict[int, Notation] = {}
        self.places: dict[int, Place | str] = {}  # of every row: in the begun box, or the end that may begin one
        for row, size in enumerate(sizes):
            self.join(row, size)

    def join(self, row: int, size: Size) -> None:
        """A further row, whose picture has this size."""
        self.notations[row] = self.followers.notation(size)
        self.places[row] = ""

    def leave(self, row: int) -> None:
        """A row that has ended, also before it joined."""
        self.notations.pop(row, None)
        self.places.pop(row, None)

    def next_tokens(self, row: int, tokens_left: int) -> tuple[bool, Tensor]:
        """Whether a row is in a begun box, and the tokens that may follow; in no box, those that may not."""
        notation, place = self.notations[row], self.places[row]
        may_begin = tokens_left >= notation.longest
        return isinstance(place, Place), self.followers.at(notation, place, may_begin)

    def allowed(self, rows: Sequence[int], tokens_left: int) -> Tensor:
        """Bool [R, V] for the next token of some rows; `tokens_left` may follow it."""
        allowed_RV = torch.ones(len(rows), len(self.followers.texts), dtype=torch.bool)
        for mask_V, row in zip(allowed_RV, rows, strict=True):
            begun, tokens = self.next_tokens(row, tokens_left)
            if begun:
                mask_V.fill_(False)
            mask_V[tokens] = begun
        return allowed_RV

    def read(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Take note of the tokens that were chosen; one that no box allows begins a text anew."""
        texts = self.followers.texts
        for row, token in zip(rows, tokens, strict=True):
            self.places[row] = self.notations[row].read(self.places[row], texts[token]) or ""


def _follows(notation: Notation, place: Place | str, text: str, may_begin: bool) -> bool:
    """Whether a text may follow: a box is finished, and none is begun in it unless it may."""
    if isinstance(place, Place):
        found = notation.go_on(place, text)
        if found is None or found[0] is not None:
            return found is not None
        place, text = "", text[found[1] :]
    end = notation.read(place, text)
    return isinstance(end, str) or (end is not None and may_begin)


def _with(known: tuple[float | None, ...], coordinate: int, value: float | None) -> tuple[float | None, ...]:
    return *known[:coordinate], value, *known[coordinate + 1 :]


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
