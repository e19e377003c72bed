"""Grounded image captioning: (name, box) pairs of captions, names to classes, COCO AP (TWIST & SCOUT 5.2, Table 2)."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ts_lightning.grounding.codecs import Codec
from ts_lightning.metrics import class_mapping
from ts_lightning.metrics.caption_ap import CaptionAP
from ts_lightning.metrics.class_mapping import ClassMapper

Pair = tuple[str, tuple[float, float, float, float]]
Extract = Callable[[str, Codec, tuple[int, int]], list[Pair]]
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
        *("as", "for", "we", "see", "can", "image", "shows", "picture", "photo"),
    )
)
SYNONYMS: dict[str, list[str]] = json.loads((Path(class_mapping.__file__).parent / "coco_synonyms.json").read_text())


def caption_pairs(text: str, codec: Codec, image_size: tuple[int, int]) -> list[Pair]:
    """(name, box) of a grounded caption by grammar: the last words before each bracket, up to a word that ends names.

    Several boxes in one bracket share the name. A bracket without a name before it is left out.
    """
    pairs: list[Pair] = []
    end = 0
    for mention in codec.parse(text, image_size):
        words = _WORD.findall(text[end : mention.start])
        end = mention.end
        name: list[str] = []
        for word in reversed(words[-6:]):
            if word.lower() in _STOP:
                if name:
                    break
                continue
            name.insert(0, word.lower())
        phrase = mention.phrase or " ".join(name)
        pairs += [(phrase, box) for box in mention.boxes if phrase]
    return pairs


def score_captions(
    records: Sequence[Mapping[str, Any]],
    annotations: Mapping[str, Any],
    codec: Codec,
    mapper: ClassMapper,
    extract: Extract = caption_pairs,
    box_score: str = "similarity",
) -> dict[str, Any]:
    """COCO's twelve figures of caption records, and how many names went to no class.

    `meta.image_id` of a record names its image. The score of a box is the similarity of its name to its class, or 1
    (`box_score: one`); equal scores keep the order of the captions. The mapper's names are the categories in order.
    """
    if box_score not in ("similarity", "one"):
        raise ValueError(f"box_score: seen {box_score!r}, expected 'similarity' or 'one'")
    metric, ids = CaptionAP(annotations), [one["id"] for one in annotations["categories"]]
    pairs_of = [extract(r["text"], codec, tuple(r["image_size"])) for r in records]
    classes = iter(mapper([name for pairs in pairs_of for name, _ in pairs]))
    dropped = 0
    for record, pairs in zip(records, pairs_of, strict=True):
        width, height = record["image_size"]
        found = [next(classes) for _ in pairs]
        dropped += sum(index is None for index, _ in found)
        metric.update(
            record["meta"]["image_id"],
            [[x1 * width, y1 * height, x2 * width, y2 * height] for _, (x1, y1, x2, y2) in pairs],
            [None if index is None else ids[index] for index, _ in found],
            [similarity if box_score == "similarity" else 1.0 for _, similarity in found],
        )
    total = sum(map(len, pairs_of))
    return metric.compute() | {"pairs": total, "names_of_no_class": dropped, "captions": len(records)}


def mapping_accuracy(mapper: ClassMapper, names: Mapping[str, str | None]) -> dict[str, float]:
    """How many of the hand-made names went to their class (None: to no class).

    `accuracy` over the names that have a class, `kept_out` over those that have none.
    """
    found = [index for index, _ in mapper(list(names))]
    right = [
        (true is not None, (None if index is None else mapper.names[index]) == true)
        for index, true in zip(found, names.values(), strict=True)
    ]
    known, other = [ok for has, ok in right if has], [ok for has, ok in right if not has]
    return {
        "accuracy": sum(known) / len(known) if known else float("nan"),
        "kept_out": sum(other) / len(other) if other else float("nan"),
    }


def plot_thresholds(mapper: ClassMapper, names: Mapping[str, str | None], path: str | Path) -> dict[float, Any]:
    """Both kinds of error by threshold: names of a class that are lost or wrong, names of none that get a class."""
    result = {}
    for hundredth in range(20, 96, 5):
        at = mapper.at(hundredth / 100)
        result[hundredth / 100] = mapping_accuracy(at, names)
    figure, axis = plt.subplots(figsize=(5.2, 3.4), constrained_layout=True)
    labels = {"accuracy": "names of a class: wrong or lost", "kept_out": "names of none: given a class"}
    for key, label in labels.items():
        axis.plot(list(result), [1 - v[key] for v in result.values()], marker="o", markersize=4, label=label)
    axis.set(xlabel="threshold (cosine)", ylabel="share", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return result
