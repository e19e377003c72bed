"""Which box an answer gives to other people's scorers, whatever its notation; xyxy.

They don't agree: what one reads as a box in [0, 1] is to another in 0-1000, or no box. Ours are in `grounding.codecs`.
"""

import json
import math
import re
from collections.abc import Sequence

from ts_lightning.grounding.boxes import Box

_DECIMAL = r"(-?\d+(?:\.\d+)?)"
_LMMS_EVAL = re.compile(rf"\[\s*{_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL}\s*\]")


def lmms_eval_box(text: str) -> Box | None:
    """lmms-eval's RefCOCO (`utils_rec.py`): the first "[x1, y1, x2, y2]", in [0, 1] of the original picture.

    They are taken as written: reversed, or outside the picture. Where there is none, the scorer's box is (0, 0, 0, 0).
    """
    match = _LMMS_EVAL.search(text)
    return None if match is None else _box(match.groups())


def lmms_eval_centre(box: Box | None, true: Box) -> bool:
    """lmms-eval's Center_ACC: the centre of the box lies in the true one, edges included.

    A reversed box has its centre too, and no box has it at (0, 0).
    """
    x1, y1, x2, y2 = box or (0.0, 0.0, 0.0, 0.0)
    return true[0] <= (x1 + x2) / 2 <= true[2] and true[1] <= (y1 + y2) / 2 <= true[3]


_ANY = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_BETWEEN = r"(?:\s*,\s*|\s+)"
_BRACKET = re.compile(rf"\[\s*({_ANY}){_BETWEEN}({_ANY}){_BETWEEN}({_ANY}){_BETWEEN}({_ANY})\s*\]")
_ANY_NUMBER = re.compile(_ANY)


def vlmevalkit_box(text: str, size: tuple[float, float]) -> Box | None:
    """VLMEvalKit's RefCOCO (`refcoco.py`), in [0, 1] of a picture of `size` (width, height) pixels.

    The first bracket of four numbers with commas or blanks between them, else the first four numbers of the text. The
    largest decides what they are: up to 1.5 shares, up to 1000 thousandths, above it pixels. Clipped to the picture;
    reversed corners are turned round.
    """
    if match := _BRACKET.search(text):
        numbers = [float(number) for number in match.groups()]
    else:
        numbers = [float(match[0]) for match, _ in zip(_ANY_NUMBER.finditer(text), range(4), strict=False)]
    if len(numbers) < 4:
        return None
    largest = max(map(abs, numbers))
    scale = (1.0, 1.0) if largest <= 1.5 else (1000.0, 1000.0) if largest <= 1000 else size
    x1, y1, x2, y2 = (min(max(n / side, 0.0), 1.0) for n, side in zip(numbers, scale * 2, strict=True))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


_INTEGERS = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")


def vlm_r1_box(text: str) -> Box | None:
    """VLM-R1's RefCOCO (`test_rec_r1.py`), in the pixels that the model was shown.

    From the first <answer> to the next </answer>, the last "[x1, y1, x2, y2]" in whole numbers between the first
    "{" and the last "}".
    """
    begin = text.find("<answer>")
    close = text.find("</answer>", begin + 8)
    if begin < 0 or close < 0:
        return None
    first, last = text.find("{", begin, close), text.rfind("}", begin, close)
    found = [] if first < 0 else list(_INTEGERS.finditer(text, first + 1, max(first + 1, last)))
    return _box(found[-1].groups()) if found else None


def vlm_r1_iou(box: Box | None, true: Box) -> float:
    """VLM-R1's IoU in pixels: an overlap at most one pixel wide or high counts as none. A hit is above 0.5."""
    if box is None:
        return 0.0
    width = min(box[2], true[2]) - max(box[0], true[0])
    height = min(box[3], true[3]) - max(box[1], true[1])
    inter = width * height if width > 1 and height > 1 else 0.0
    union = _signed_area(box) + _signed_area(true) - inter
    return inter / union if union else 0.0


def _signed_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


_WHOLE, _FRACTION = r"(\d+)", r"(\d+\.\d+)"
_MIGICIAN = (
    re.compile(rf"\({_WHOLE},\s*{_WHOLE}\),\s*\({_WHOLE},\s*{_WHOLE}\)"),
    re.compile(rf"\[{_FRACTION},\s*{_FRACTION},\s*{_FRACTION},\s*{_FRACTION}\]"),
    re.compile(rf"\({_FRACTION},{_FRACTION}\),\({_FRACTION},{_FRACTION}\)"),
    re.compile(rf"\({_FRACTION},\s*{_FRACTION},\s*{_FRACTION},\s*{_FRACTION}\)"),
    re.compile(rf"\[{_WHOLE},\s*{_WHOLE},\s*{_WHOLE},\s*{_WHOLE}\]"),
    re.compile(rf"<box>{_WHOLE}\s+{_WHOLE}\s+{_WHOLE}\s+{_WHOLE}</box>"),
)


def migician_box(text: str) -> Box | None:
    """MIG-Bench's official reading (Migician's `extract_bbox`): the first box of the first notation that occurs.

    In this order: (x,y),(x,y) in whole numbers; [x, y, x, y], (x,y),(x,y) and (x, y, x, y) in fractions; [x, y, x, y]
    in whole numbers; <box>x y x y</box>. Every number from 1 on is in thousandths; a 1 beside further boxes is 1.
    """
    for notation in _MIGICIAN:
        if found := [match for match, _ in zip(notation.finditer(text), range(2), strict=False)]:
            numbers = [float(number) for number in found[0].groups()]
            alone = len(found) == 1
            return _box([n / 1000 if n > 1 or (alone and n == 1) else n for n in numbers])
    return None


_NUMBER = r"(-?\d+(?:\.\d+)?)"
_FOUR = re.compile(rf"{_NUMBER}[\s,]+{_NUMBER}[\s,]+{_NUMBER}[\s,]+{_NUMBER}")


def groundingme_numbers(text: str) -> tuple[float, float, float, float]:
    """GroundingME's official reading, numbers as written: (0, 0, 0, 0) for null and where there are none.

    `bbox_2d` of the JSON object from the first "{" on that a "bbox_2d" follows up to the last "}"; else the last four
    numbers in a row.
    """
    first, key, last = text.find("{"), text.rfind('"bbox_2d"'), text.rfind("}")
    if 0 <= first < key < last:
        try:
            box = json.loads(text[first : last + 1])["bbox_2d"]
            if box is None:
                return 0.0, 0.0, 0.0, 0.0
            if isinstance(box, list) and len(box) == 4:
                x1, y1, x2, y2 = map(float, box)
                return x1, y1, x2, y2
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    found = _FOUR.findall(text)
    x1, y1, x2, y2 = map(float, found[-1]) if found else (0.0, 0.0, 0.0, 0.0)
    return x1, y1, x2, y2


def _box(numbers: Sequence[str | float]) -> Box | None:
    """Four numbers; None beyond what a float holds."""
    x1, y1, x2, y2 = map(float, numbers)
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None
