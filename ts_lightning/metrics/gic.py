"""Grounded image captioning: (name, box) pairs of captions, names to classes, COCO AP (TWIST & SCOUT 5.2, Table 2)."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.grounding.answer import Answer, brackets
from ts_lightning.metrics import class_mapping
from ts_lightning.metrics.caption_ap import CaptionAP
from ts_lightning.metrics.class_mapping import ClassMapper

Pair = tuple[str, tuple[float, float, float, float]]
Extract = Callable[[str, Answer], list[Pair]]
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
# What may stand between a name and its box, or begin a name, without being part of it.
_STOP = frozenset(
    (
        *(
            "a",
            "an",
            "the",
            "is",
            "are",
            "was",
            "were",
            "be",
            "in",
            "on",
            "at",
            "of",
            "with",
            "and",
            "or",
            "to",
            "from",
        ),
        *("by", "near", "next", "behind", "under", "over", "above", "below", "has", "have", "there", "this", "that"),
        *("these", "those", "his", "her", "its", "their", "holding", "wearing", "riding", "sitting", "standing", "it"),
        *("playing", "eating", "using", "left", "right", "into", "onto", "beside", "between", "while", "who", "which"),
        *("as", "for", "we", "see", "can", "image", "shows", "picture", "photo", "watching"),
    )
)
SYNONYMS: dict[str, list[str]] = json.loads((Path(class_mapping.__file__).parent / "coco_synonyms.json").read_text())


def caption_pairs(text: str, answer: Answer) -> list[Pair]:
    """(name, box) of a grounded caption by grammar: the last words before each bracket, up to a word that ends names.

    Several boxes in one bracket share the name. A bracket without a name before it is left out.
    """
    pairs: list[Pair] = []
    end = 0
    for (start, stop), things in brackets(answer):
        words = _WORD.findall(text[end:start])
        end = stop
        name: list[str] = []
        for word in reversed(words[-6:]):
            if word.lower() in _STOP:
                if name:
                    break
                continue
            name.insert(0, word.lower())
        phrase = things[0].phrase or " ".join(name)
        pairs += [(phrase, thing.box) for thing in things if phrase and thing.is_box]
    return pairs


def caption_figures(
    rows: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    mapper: ClassMapper,
    box_score: str = "similarity",
) -> dict[str, Any]:
    """COCO's twelve figures of captions, and how many names went to no class.

    A row has `image_id`, the picture's `size` in pixels and its `pairs`. The score of a box is the similarity of its
    name to its class, or 1 (`box_score: one`); equal scores keep the order of the captions. The mapper's names are the
    categories in order.
    """
    if box_score not in ("similarity", "one"):
        raise ValueError(f"box_score: seen {box_score!r}, expected 'similarity' or 'one'")
    metric, ids = CaptionAP(annotations), [one["id"] for one in annotations["categories"]]
    classes = iter(mapper([name for row in rows for name, _ in row["pairs"]]))
    dropped = total = 0
    for row in rows:
        width, height = row["size"]
        found = [next(classes) for _ in row["pairs"]]
        total += len(found)
        dropped += sum(index is None for index, _ in found)
        metric.update(
            row["image_id"],
            [[x1 * width, y1 * height, x2 * width, y2 * height] for _, (x1, y1, x2, y2) in row["pairs"]],
            [None if index is None else ids[index] for index, _ in found],
            [similarity if box_score == "similarity" else 1.0 for _, similarity in found],
        )
    return metric.compute() | {"pairs": total, "names_of_no_class": dropped, "captions": len(rows)}
