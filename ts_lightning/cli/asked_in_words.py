"""What the untouched tiny base knows of places: the toy world's held-out objects, asked for in words.

The base has learnt to say an object's range across and range down in twentieths of the picture ("four to eight").
The two answers together are a box, so tuning has to be compared with this row and not with "no box could be read".
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from ts_lightning.data import Sample, index_shards
from ts_lightning.data.collate import collate
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.metrics import BoxAccuracy, MeanIoU
from ts_lightning.metrics.mean_iou import box_tensor
from ts_lightning.models import VLM
from ts_lightning.pipelines.toy_world.understanding import NUMBERS

RANGES = ("across", "down")
_RANGE = re.compile(rf"\b({'|'.join(NUMBERS)}) to ({'|'.join(NUMBERS)})\b")


def score_in_words(vlm: VLM, shards: str, batch_size: int = 100) -> dict[str, float]:
    """`miou`, `acc50` and `unparsed` of single-box questions whose phrase is asked for its range across and down."""
    samples = [*ShardReader(index_shards(shards))]
    answers = [word_answers(vlm, [in_words(sample, name) for sample in samples], batch_size) for name in RANGES]
    boxes = [box_of(across, down) for across, down in zip(*answers, strict=True)]
    truths = [sample.regions[0].box for sample in samples]
    sizes = torch.tensor([(sample.images[0].width, sample.images[0].height) for sample in samples])
    iou, accuracy = MeanIoU(), BoxAccuracy()
    iou.update(box_tensor(boxes), box_tensor(truths), sizes)
    accuracy.update(box_tensor(boxes), box_tensor(truths))
    return {
        "miou": float(iou.compute()["miou"]),
        "acc50": float(accuracy.compute()["acc50"]),
        "unparsed": sum(box is None for box in boxes) / len(boxes),
    }


def in_words(sample: Sample, which: str) -> Sample:
    """The understanding question for the range ("across" or "down") of the sample's first region."""
    phrase = str(sample.regions[0].phrase).removeprefix("the ")
    question = Turn("user", f"<image>\nWhat is the range {which} of the {phrase}?")
    return replace(sample, task=UNDERSTANDING, turns=[question, Turn("assistant", "zero to zero")])


def box_of(across: str, down: str) -> Box | None:
    """The box of two answers such as "four to eight"; None where one has no range, or an empty one."""
    found = [_RANGE.search(answer.lower()) for answer in (across, down)]
    if found[0] is None or found[1] is None:
        return None
    (x1, x2), (y1, y2) = ((NUMBERS.index(match[1]) / 20, NUMBERS.index(match[2]) / 20) for match in found if match)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


@torch.no_grad()
def word_answers(vlm: VLM, samples: Sequence[Sample], batch_size: int) -> list[str]:
    """Greedy answers of the vlm, on the CPU."""
    vlm.eval()
    texts: list[str] = []
    for start in range(0, len(samples), batch_size):
        rows = [vlm.encode(sample, for_generation=True) for sample in samples[start : start + batch_size]]
        texts += vlm.generate(collate(rows, vlm.pad_id, side="left"), max_new_tokens=12)
    return texts
