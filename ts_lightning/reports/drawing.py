"""Pictures of answers: predicted boxes in one colour a step, the true box in green, question and answer below."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.steps import step_spans

STEP_COLORS = ("#e6194b", "#0a6cff", "#f58231", "#911eb4", "#00a3b4", "#b8860b")  # step 1, 2, 3 ...
TRUE_COLOR = "#12b312"
TEXT_COLOR, FAINT_COLOR, PAPER = "#1d1d1f", "#6e6e73", "#ffffff"
PAD = 12


@dataclass(frozen=True)
class Picture:
    """One question to draw. Boxes are xyxy in [0, 1]; `predicted` holds the boxes of each step of the answer.

    `at` is the character of the answer that is shown however long the answer is: where the box that counts begins.
    """

    image: Image.Image
    question: str
    answer: str
    predicted: Sequence[Sequence[Box]] = ()
    true: Sequence[Box] = ()
    note: str = ""
    true_answer: str = ""
    at: int = 0


def draw_picture(picture: Picture, width: int = 360) -> Image.Image:
    """The image scaled to `width` pixels (at least 320), its boxes, and a panel with question, answer and note."""
    width = max(width, 320)
    image = draw_boxes(picture.image, picture.predicted, picture.true, width)
    lines = list(_panel(picture, width - 2 * PAD))
    height = 2 * PAD + sum(step for _, _, _, step in lines)
    page = Image.new("RGB", (width, image.height + height), PAPER)
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    y = image.height + PAD
    for text, color, bold, step in lines:
        draw.text((PAD, y), text, fill=color, font=_font(bold))
        y += step
    return page


def draw_numbered(
    image: Image.Image, question: str, lines: Sequence[str], boxes: Sequence[Box], width: int = 480
) -> Image.Image:
    """The image with every box in a colour of its own and marked 1, 2, ..., and all of the text below it.

    `[2]` in a line is the number of box 2, in its colour.
    """
    size = (width, max(1, round(image.height * width / image.width)))
    rows = [*_wrapped(question, TEXT_COLOR, True, width - 2 * PAD, whole=True)]
    rows += [row for line in lines for row in _wrapped(line, TEXT_COLOR, False, width - 2 * PAD, whole=True)]
    page = Image.new("RGB", (width, size[1] + 2 * PAD + sum(step for *_, step in rows)), PAPER)
    page.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(page)
    for number, box in enumerate(boxes, 1):
        _outline(draw, box, size, _hue(number), line=3, halo=1)
    taken: list[tuple[float, float]] = []
    for number, box in enumerate(boxes, 1):
        _number(draw, number, box, size, taken)
    y = size[1] + PAD
    for text, color, bold, step in rows:
        x = float(PAD)
        for part in re.split(r"(\[\d+\])", text):
            marked = re.fullmatch(r"\[(\d+)\]", part)
            draw.text((x, y), part, fill=_hue(int(marked[1])) if marked else color, font=_font(bold or bool(marked)))
            x += _font(bold or bool(marked)).getlength(part)
        y += step
    return page


def _hue(number: int) -> str:
    """A colour of its own for each number: hues that the golden ratio spreads, dark enough for white letters."""
    red, green, blue = hsv_to_rgb((0.618034 * number) % 1, 0.95, 0.78)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _number(
    draw: ImageDraw.ImageDraw, number: int, box: Box, size: tuple[int, int], taken: list[tuple[float, float]]
) -> None:
    """The number on its colour, at the box's upper left corner or, where another one is, to the right of that."""
    width, height = round(_font(True).getlength(str(number))) + 6, 18
    x = min(box[0] * size[0], size[0] - width)
    y = min(box[1] * size[1], size[1] - height)
    while any(abs(x - other) < width + 2 and abs(y - above) < height for other, above in taken):
        x, y = (x + width + 2, y) if x + 2 * width + 2 < size[0] else (0.0, y + height)
    taken.append((x, y))
    draw.rectangle((x, y, x + width, y + height), fill=_hue(number), outline="white")
    draw.text((x + 3, y), str(number), fill="white", font=_font(True))


def draw_boxes(
    image: Image.Image, predicted: Sequence[Sequence[Box]], true: Sequence[Box] = (), width: int = 360
) -> Image.Image:
    """The image scaled to `width` with the true boxes (green, wide, below) and the predicted ones (thin, on top)."""
    size = (width, max(1, round(image.height * width / image.width)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    for box in true:
        _outline(draw, box, size, TRUE_COLOR, line=4, halo=2)
    for step, boxes in enumerate(predicted):
        for box in boxes:
            _outline(draw, box, size, STEP_COLORS[step % len(STEP_COLORS)], line=3, halo=1)
    return canvas


def contact_sheet(pictures: Sequence[Picture], columns: int = 4, width: int = 360, title: str = "") -> Image.Image:
    """All pictures on one page; each goes under the column that is shortest so far. A legend stands on top."""
    if not pictures:
        raise ValueError("contact_sheet: seen no picture, expected at least 1")
    tiles = [draw_picture(picture, width) for picture in pictures]
    columns = min(columns, len(tiles))
    tops, places = [2 * PAD + 22] * columns, []
    for tile in tiles:
        column = tops.index(min(tops))
        places.append((PAD + column * (tile.width + PAD), tops[column]))
        tops[column] += tile.height + PAD
    sheet = Image.new("RGB", (columns * (tiles[0].width + PAD) + PAD, max(tops)), "#e8e8ed")
    draw, x = ImageDraw.Draw(sheet), PAD
    legend = [(title, TEXT_COLOR, True), ("truth", TRUE_COLOR, False), ("predicted:", TEXT_COLOR, False)]
    legend += [(str(step + 1), color, True) for step, color in enumerate(STEP_COLORS[:4])]
    for text, color, bold in legend:
        draw.text((x, PAD), text, fill=color, font=_font(bold))
        x += round(_font(bold).getlength(text)) + (PAD if text else 0)
    for tile, place in zip(tiles, places, strict=True):
        sheet.paste(tile, place)
    return sheet


def _outline(draw: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], color: str, line: int, halo: int) -> None:
    """A rectangle centred on the box's edges, with white on both sides so that it shows on any background."""
    edges = [v * side for v, side in zip(box, size * 2, strict=True)]
    for reach, width, ink in ((line / 2 + halo, line + 2 * halo, "white"), (line / 2, line, color)):
        x1, y1, x2, y2 = edges[0] - reach, edges[1] - reach, edges[2] + reach - 1, edges[3] + reach - 1
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=ink, width=width)


def _panel(picture: Picture, width: int) -> Iterator[tuple[str, str, bool, int]]:
    """Lines of the panel as (text, colour, bold, distance to the next line)."""
    yield from _wrapped(picture.question, TEXT_COLOR, True, width)
    several, at = len(picture.predicted) > 1, min(picture.at, len(picture.answer) - 1)
    for step, (start, end) in enumerate(step_spans(picture.answer)):
        has_box = step < len(picture.predicted) and len(picture.predicted[step]) > 0
        color = STEP_COLORS[step % len(STEP_COLORS)] if has_box or several else TEXT_COLOR
        said = picture.answer[start:end].lstrip()
        place = at - (end - len(said)) if start <= at < end else 0
        yield from _wrapped(said or "(no answer)", color, False, width, at=max(0, place))
    if picture.true_answer:
        yield from _wrapped(f"truth: {picture.true_answer}", TRUE_COLOR, False, width)
    if picture.note:
        yield from _wrapped(picture.note, FAINT_COLOR, False, width)


def _wrapped(
    text: str, color: str, bold: bool, width: int, whole: bool = False, at: int = 0
) -> Iterator[tuple[str, str, bool, int]]:
    """Greedy line breaks at spaces; a word that is too long alone is cut. At most 8 lines, or the `whole` text.

    Of a longer text the first lines, and those around its character `at`.
    """
    font, lines, starts = _font(bold), [""], [0]
    if not whole:
        text, at = _shortened(text, at)
    for found in re.finditer(r"\S+", text):
        word, start = found[0], found.start()
        while word:
            cut = _fitting(word, font, width)
            joined = f"{lines[-1]} {word[:cut]}".strip()
            if font.getlength(joined) > width:
                lines.append(word[:cut])
                starts.append(start)
            else:
                lines[-1] = joined
            word, start = word[cut:], start + cut
    if len(lines) > 8 and not whole:
        place = bisect_right(starts, at) - 1
        if place < 7:
            lines = [*lines[:7], lines[7][:-1] + "..."]
        else:
            lines = [*lines[:3], "...", *lines[place - 1 : place + 2], *["..."][: len(lines) - place - 2]]
    for i, line in enumerate(lines):
        yield line, color, bold, 18 if i + 1 < len(lines) else 23


def _fitting(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many of the word's first letters fit, at least 1."""
    if font.getlength(word) <= width:
        return len(word)
    return max(1, bisect_right(range(len(word)), width, key=lambda n: int(font.getlength(word[:n]))) - 1)


def _shortened(text: str, at: int) -> tuple[str, int]:
    """As much of a long text as may be shown, and where its character `at` is: to measure all of it takes long."""
    if at < 700:
        return text[:1000], at
    return f"{text[:300]} ... {text[at - 100 : at + 400]}", 405


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), 14)
