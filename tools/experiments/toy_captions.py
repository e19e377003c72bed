"""Captions with boxes of the toy world: their COCO file, names to classes by words, and what a caption got right."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.boxes import iou
from ts_lightning.metrics.protocols import Protocol
from ts_lightning.metrics.protocols.captions import GIC
from ts_lightning.pipelines.toy_world.new_objects import KINDS
from ts_lightning.pipelines.toy_world.scene import SHAPES

CLASSES = (*SHAPES, *KINDS)


def numbered(samples: Iterable[Sample]) -> list[Sample]:
    """The samples with the numbers of their pictures in the COCO file, 1 to N."""
    made = list(samples)
    for number, sample in enumerate(made, 1):
        sample.meta = {"image_id": number}
    return made


def coco(samples: Sequence[Sample]) -> dict[str, Any]:
    """The COCO instances file of numbered samples: every object of a scene by its shape."""
    images, annotations = [], []
    for sample in samples:
        picture, number = sample.images[0], (sample.meta or {})["image_id"]
        images.append({"id": number, "width": picture.width, "height": picture.height})
        for region in sample.regions:
            x1, y1, x2, y2 = region.box or (0.0, 0.0, 0.0, 0.0)
            left, top = x1 * picture.width, y1 * picture.height
            wide, high = (x2 - x1) * picture.width, (y2 - y1) * picture.height
            where = {"id": len(annotations) + 1, "image_id": number, "bbox": [left, top, wide, high]}
            kind = {"category_id": CLASSES.index(region.category or "") + 1, "area": wide * high, "iscrowd": 0}
            annotations.append(where | kind)
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def words(texts: Sequence[str]) -> Tensor:
    """One-hot of the class that a text names, zeros for none [N, C].

    It stands in for the sentence transformer: here a name is a size, a colour and the class itself.
    """
    return torch.tensor([[float(name in text.split()) for name in CLASSES] for text in texts])


def by_words(protocol: Protocol) -> None:
    """Map names to classes by `words` where the protocol maps names."""
    if isinstance(protocol, GIC):
        protocol.embed, protocol.names_alone = words, True


def whole(row: Mapping[str, Any], truth: Mapping[str, Any]) -> bool:
    """Whether a caption names exactly the objects of its picture, each by its class with a box of IoU 0.5 or more."""
    width, height = row["size"]
    missing = [
        (CLASSES[one["category_id"] - 1], (x / width, y / height, (x + wide) / width, (y + high) / height))
        for one in truth["annotations"]
        if one["image_id"] == row["image_id"]
        for x, y, wide, high in [one["bbox"]]
    ]
    for name, box in row["pairs"]:
        found = [one for one in missing if one[0] in name.split() and iou(one[1], box) >= 0.5]
        if not found:
            return False
        missing.remove(found[0])
    return not missing
