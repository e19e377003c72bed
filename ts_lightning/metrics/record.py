"""From generated texts to suite metrics and prediction records."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from torchmetrics import MeanMetric, Metric

from ts_lightning.data.sample import IMAGE_MARK, Sample
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.steps import Prediction, predicted_box
from ts_lightning.metrics import (
    AnswerAccuracy,
    BoxAccuracy,
    ContainsAccuracy,
    MeanIoU,
    StepAnswer,
    StepMetrics,
    box_tensor,
    parse_steps,
    target_steps,
)

UNDERSTANDING = "understanding"
STEP_TAGS = {"cot", "negative"}


class SuiteMetrics:
    """The metrics of every suite and, within it, of every subtask; made when their first question comes.

    A question with one true box counts in `miou`, `miou_medium`, `miou_large`, `acc50`, `unparsed`, `unparsed_strict`
    (no canonical box; scores read leniently) and `several` (more than one box: the first counts); a step-by-step or
    negative one in the rates of `StepMetrics`; an understanding one with accepted answers in `accuracy`,
    or in `contains` where its tags say so (region OCR, VizWiz, PointQA: the answer contains the truth).
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.metrics: dict[tuple[str, str], Metric] = {}

    def reset(self) -> None:
        """Forget all questions."""
        self.metrics.clear()

    def update(self, suite: str, batch: dict[str, Any], texts: Sequence[str]) -> None:
        """Add the generated texts of a batch; rows with `row_valid` False are padding and don't count."""
        for sample, text, is_valid in zip(batch["samples"], texts, batch["row_valid"].tolist(), strict=True):
            if is_valid:
                for prefix in (suite, f"{suite}/{sample.subtask}") if sample.subtask else (suite,):
                    self._add(prefix, sample, text)

    def _add(self, prefix: str, sample: Sample, text: str) -> None:
        if sample.task == UNDERSTANDING:
            if accepted := accepted_answers(sample):
                self._metric(prefix, "contains" if "contains" in sample.tags else "answer").update([text], [accepted])
            return
        size = image_size(sample)
        if STEP_TAGS & set(sample.tags):
            self._metric(prefix, "steps").update([parse_steps(text, self.codec, size)], [_true_steps(sample)])
        if (box := true_box(sample)) is not None:
            prediction = predicted_box(text, self.codec, size)
            boxes = box_tensor([prediction.box]), box_tensor([box])
            area = true_area(sample)
            area_px = torch.tensor([float("nan") if area is None else area], dtype=torch.float64)
            self._metric(prefix, "iou").update(*boxes, torch.tensor([size]), area_px)
            self._metric(prefix, "acc").update(*boxes)
            for status in ("unparsed", "several"):
                self._metric(prefix, status).update(float(prediction.status == status))
            strict = predicted_box(text, self.codec, size, strict=True)
            self._metric(prefix, "unparsed_strict").update(float(strict.status == "unparsed"))

    def _metric(self, prefix: str, kind: str) -> Metric:
        if (prefix, kind) not in self.metrics:
            self.metrics[prefix, kind] = _MAKERS.get(kind, MeanMetric)()
        return self.metrics[prefix, kind]

    def compute(self, device: torch.device) -> dict[str, float]:
        """`<suite>[/<subtask>]/<name>` of all ranks' questions together; what has no question is left out.

        Every rank has to call it: the metrics synchronise, in the same order everywhere.
        """
        keys = set(self.metrics)
        if distributed.is_initialized():
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, keys)
            keys = set().union(*gathered)
        results: dict[str, float] = {}
        for prefix, kind in sorted(keys):
            value = self._metric(prefix, kind).to(device).compute()
            named = value if isinstance(value, dict) else {kind: value}
            results |= {f"{prefix}/{name}": float(v) for name, v in named.items() if name != "count" and v == v}
        return results


_MAKERS: dict[str, type[Metric]] = {
    "answer": AnswerAccuracy,
    "contains": ContainsAccuracy,
    "steps": StepMetrics,
    "iou": MeanIoU,
    "acc": BoxAccuracy,
}


def prediction_records(batch: dict[str, Any], texts: Sequence[str], codec: Codec, suite: str) -> list[dict[str, Any]]:
    """`prediction_record` of every row of a batch that is no padding."""
    rows = zip(batch["samples"], texts, batch["row_valid"].tolist(), strict=True)
    return [prediction_record(sample, text, codec, suite) for sample, text, is_valid in rows if is_valid]


def prediction_record(sample: Sample, text: str, codec: Codec, suite: str) -> dict[str, Any]:
    """One question as a JSON-able dict: what was asked, said, parsed from it, and true.

    `regions` are all boxes of the text in order, [0, 1] and in pixels of the displayed original image; `box` is the
    one that counts (None if there is none, or for an understanding question).
    """
    size = image_size(sample)
    boxes = [box for parsed in codec.parse(text, size) for box in parsed.boxes]
    asks_box = sample.task != UNDERSTANDING
    prediction = predicted_box(text, codec, size) if asks_box else Prediction(None, "not_asked")
    strict = predicted_box(text, codec, size, strict=True) if asks_box else prediction
    truth = true_box(sample)
    return {
        "suite": suite,
        "key": sample.key,
        "id": sample.id,
        "shard": sample.shard,
        "task": sample.task,
        "meta": sample.meta,
        "source": sample.source,
        "subtask": sample.subtask,
        "tags": sample.tags,
        "image_size": list(size),
        "choices": sample.choices,
        "question": sample.turns[-2].text.replace(IMAGE_MARK, "").strip(),
        "text": text,
        "regions": [{"box": list(box), "box_px": in_pixels(box, size)} for box in boxes],
        "codec": codec.name,
        "frame": f"{codec.space.grid} of the {codec.space.frame.replace('_', ' ')} image",
        "parser": "lenient",
        "parse_status": prediction.status,
        "canonical": strict.box == prediction.box,
        "steps": parse_steps(text, codec, size)._asdict() if STEP_TAGS & set(sample.tags) else None,
        "box": None if prediction.box is None else list(prediction.box),
        "box_px": None if prediction.box is None else in_pixels(prediction.box, size),
        "truth": {
            "text": sample.turns[-1].text,
            "answers": accepted_answers(sample),
            "steps": _true_steps(sample)._asdict() if STEP_TAGS & set(sample.tags) else None,
            "image": _true_image(sample),
            "box": None if truth is None else list(truth),
            "boxes": [list(b) for i in _answer_regions(sample) for b in region_boxes(sample, i)],
            "box_px": None if truth is None else in_pixels(truth, size),
            "ceiling": None if truth is None else ceiling(truth, codec, size),
            "area_px": None if truth is None else true_area(sample),
        },
    }


def _true_steps(sample: Sample) -> StepAnswer:
    return target_steps(sample.turns[-1].text, [region_boxes(sample, i) for i in range(len(sample.regions))])


def _true_image(sample: Sample) -> int | None:
    """Which picture the answer lies in, where there are several and it is known (`meta.image` may say null)."""
    meta = sample.meta or {}
    if len(sample.images) < 2 or not _answer_regions(sample):
        return None
    return meta["image"] if "image" in meta else sample.regions[_answer_regions(sample)[0]].image


def _answer_regions(sample: Sample) -> list[int]:
    return [] if sample.answer is None else sample.answer.regions


def ceiling(box: Box, codec: Codec, size: tuple[int, int]) -> float:
    """IoU of a box with itself after writing and reading it: the best that an answer on this grid can reach."""
    back = predicted_box(codec.format([box], size), codec, size).box
    return 0.0 if back is None else round(iou(box, back), 6)


def accepted_answers(sample: Sample) -> list[str]:
    """The answers in words that are right; empty when the sample is not scored on words."""
    if sample.answers:
        return sample.answers
    return [sample.answer.text] if sample.answer is not None and sample.answer.text is not None else []


def true_box(sample: Sample) -> Box | None:
    """The one box that a question asks for, if it asks for one (a caption of one object does not)."""
    if sample.task == UNDERSTANDING or sample.answer is None or len(sample.answer.regions) != 1:
        return None
    if "caption" in (sample.subtask or ""):
        return None
    boxes = region_boxes(sample, sample.answer.regions[0])
    return boxes[0] if len(boxes) == 1 else None


def true_area(sample: Sample) -> float | None:
    """Pixels of the object that a single-box question asks for, where the data set names them."""
    return sample.regions[sample.answer.regions[0]].area_px if sample.answer is not None else None


def region_boxes(sample: Sample, index: int) -> list[Box]:
    """The boxes of a region, none for points and polygons."""
    region = sample.regions[index]
    return [region.box] if region.box is not None else list(region.boxes or [])


def image_size(sample: Sample) -> tuple[int, int]:
    """Displayed (width, height) in pixels of the image that the answer lies in, else the first; (1, 1) without one."""
    if not sample.images:
        return 1, 1
    asked = _answer_regions(sample)
    image = sample.images[sample.regions[asked[0]].image if asked else 0]
    return image.width, image.height


def in_pixels(box: Box, size: tuple[int, int]) -> list[float]:
    """A [0, 1] box in pixels of an image of (width, height), two decimals."""
    return [round(value * side, 2) for value, side in zip(box, size * 2, strict=True)]
