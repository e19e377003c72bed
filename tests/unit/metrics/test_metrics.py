"""Metrics against numbers worked out by hand and against an independent numpy reference on random boxes."""

import math

import numpy as np
import pytest
import torch

from ts_lightning.grounding import get_codec, read_answer
from ts_lightning.metrics import (
    AnswerAccuracy,
    BoxAccuracy,
    MeanIoU,
    StepAnswer,
    StepMetrics,
    box_iou,
    box_tensor,
    match_boxes,
    normalise_answer,
    said_steps,
    target_steps,
)

FULL = (0.0, 0.0, 1.0, 1.0)
LEFT = (0.0, 0.0, 0.5, 1.0)
CODEC = get_codec("scout")


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.random((count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def numpy_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Area of the overlap by interval lengths, written without looking at the tensor version."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    overlap = wide * high if wide > 0 and high > 0 else 0.0
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def test_box_iou_by_hand() -> None:
    pred = box_tensor([FULL, LEFT, (0.5, 0.0, 1.0, 1.0), (0.25, 0.0, 0.75, 1.0), None, (0.9, 0.9, 0.1, 0.1)])
    true = box_tensor([FULL, FULL, LEFT, LEFT, FULL, FULL])
    torch.testing.assert_close(box_iou(pred, true), torch.tensor([1, 0.5, 0, 1 / 3, 0, 0], dtype=torch.float64))
    assert box_iou(box_tensor([(0.5, 0.5, 0.5, 0.5)]), box_tensor([(0.5, 0.5, 0.5, 0.5)])).tolist() == [0.0]


def test_against_numpy_on_random_boxes() -> None:
    rng = np.random.default_rng(3)
    count = 300
    true = random_boxes(rng, count)
    pred = np.clip(true + rng.normal(0, 0.08, true.shape), 0, 1)
    missing = rng.random(count) < 0.1
    sizes = rng.integers(60, 400, (count, 2))
    ious = np.array(
        [
            0.0 if m else numpy_iou(p, t) if (p[2:] > p[:2]).all() else 0.0
            for p, t, m in zip(pred, true, missing, strict=True)
        ]
    )
    areas = (true[:, 2] - true[:, 0]) * sizes[:, 0] * (true[:, 3] - true[:, 1]) * sizes[:, 1]
    medium, large = (areas >= 1024) & (areas <= 9216), areas > 9216
    assert min(medium.sum(), large.sum(), (~medium & ~large).sum()) > 10

    pred_boxes = box_tensor([None if m else tuple(p) for p, m in zip(pred, missing, strict=True)])
    miou, acc = MeanIoU(), BoxAccuracy()
    for part in torch.arange(count).split(77):  # an uneven last batch
        miou.update(pred_boxes[part], torch.tensor(true)[part], torch.tensor(sizes)[part])
        acc.update(pred_boxes[part], torch.tensor(true)[part])
    result = {key: value.item() for key, value in miou.compute().items()}
    expected = {
        "miou": ious.mean(),
        "miou_medium": ious[medium].mean(),
        "miou_large": ious[large].mean(),
        "count": count,
    }
    assert result == pytest.approx(expected, abs=1e-12)
    assert acc.compute()["acc50"].item() == (ious >= 0.5).mean()


def test_area_bounds_are_those_of_the_paper() -> None:
    """32 x 32 and 96 x 96 are medium, one pixel less is neither, one more is large. The default area is the box's."""
    metric = MeanIoU()
    sides = [31, 32, 96, 97]
    boxes = box_tensor([(0.0, 0.0, side / 128, side / 128) for side in sides])
    metric.update(boxes, boxes, torch.tensor([[128, 128]] * 4))
    assert metric.count.tolist() == [4, 2, 1]


def test_given_areas_win_over_box_areas() -> None:
    metric = MeanIoU()
    areas = torch.tensor([1000.0, 1024.0, float("nan")])
    metric.update(box_tensor([FULL, LEFT, None]), box_tensor([FULL] * 3), torch.tensor([[200, 200]] * 3), areas)
    result = metric.compute()
    assert result["miou"].item() == (1 + 0.5 + 0) / 3
    assert (result["miou_medium"].item(), result["miou_large"].item()) == (0.5, 0.0)


def test_threshold_is_inclusive_unless_told_otherwise() -> None:
    pred, true = box_tensor([LEFT, FULL, None]), box_tensor([FULL] * 3)
    assert box_iou(pred, true)[0] == 0.5
    for inclusive, expected, rule in ((True, 2 / 3, "IoU >= 0.5"), (False, 1 / 3, "IoU > 0.5")):
        metric = BoxAccuracy(inclusive=inclusive)
        metric.update(pred, true)
        assert metric.compute()["acc50"].item() == pytest.approx(expected)
        assert metric.rule == rule
        assert rule in repr(metric)
    assert BoxAccuracy(0.75).name == "acc75"


def test_nothing_gives_nan_and_empty_updates_count_nothing() -> None:
    metric = MeanIoU()
    metric.update(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 2))
    assert metric.count.tolist() == [0, 0, 0]
    assert math.isnan(metric.compute()["miou"])


def test_wrong_shapes_and_bad_truth_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seen shapes \[2, 4\] and \[1, 4\], expected the same \[N, 4\]"):
        BoxAccuracy().update(torch.zeros(2, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="true_boxes: seen NaN"):
        BoxAccuracy().update(box_tensor([FULL]), box_tensor([None]))
    with pytest.raises(ValueError, match="threshold: seen 50"):
        BoxAccuracy(threshold=50)


def test_answer_accuracy() -> None:
    assert normalise_answer(" A  red dog. ") == "red dog"
    assert normalise_answer("a") == "a"
    metric = AnswerAccuracy()
    metric.update(["Two.", "red", "left of"], [["2", "two"], ["blue"], ["left of"]])
    assert metric.compute()["accuracy"].item() == pytest.approx(2 / 3)


TRUE_TEXT = (
    "Step 1: Find the man {region:0}. Step 2: Check the hats {region:1}, {region:2}. Step 3: So the answer is orange."
)
REGIONS = [[(0.1, 0.1, 0.5, 0.9)], [(0.0, 0.0, 0.2, 0.2)], [(0.6, 0.0, 0.8, 0.2), (0.8, 0.0, 1.0, 0.2)]]


def test_target_and_prediction_are_taken_apart() -> None:
    target = target_steps(TRUE_TEXT, REGIONS)
    assert target == StepAnswer("orange", [REGIONS[0], REGIONS[1] + REGIONS[2], []], False)
    text = (
        "Step 1: The man [[10,10,50,90]]. Step 2: The hats [[0,0,20,20;60,0,80,20]]. Step 3: So the answer is Orange."
    )
    pred = said_steps(read_answer(text, CODEC, []))
    assert [len(boxes) for boxes in pred.step_boxes] == [1, 2, 0]
    assert (pred.answer, pred.rejected) == ("orange", False)
    invalid = "Step 1: There is a cat [[1,1,9,9]], not a dog. This question is invalid."
    negative = said_steps(read_answer(invalid, CODEC, []))
    assert negative.rejected


def test_step_metrics_by_hand() -> None:
    target = target_steps(TRUE_TEXT, REGIONS)
    negative = StepAnswer("", [[REGIONS[0][0]]], True)
    preds = [
        # step 1 right; step 2: one of three, doubled (the copy matches nothing); the answer is right
        StepAnswer("Orange.", [[REGIONS[0][0]], [REGIONS[1][0], REGIONS[1][0]], []], False),
        # the man's box comes in the wrong step, the answer is wrong, a valid question is rejected
        StepAnswer("red", [[], [REGIONS[0][0]]], True),
        StepAnswer("", [[REGIONS[0][0]]], True),  # a negative, rejected
        StepAnswer("dog", [], False),  # a negative, answered
    ]
    metric = StepMetrics()
    metric.update(preds[:3], [target, target, negative])
    metric.update(preds[3:], [negative])
    result = {key: value.item() for key, value in metric.compute().items()}
    assert result == pytest.approx(
        {
            "answer_acc": 1 / 2,
            "step_precision": 3 / 5,
            "step_recall": 3 / (4 + 4 + 1 + 1),
            "rejection_rate": 1 / 2,
            "false_rejection_rate": 1 / 2,
            "count": 4,
        }
    )


def test_matching_is_one_to_one_and_takes_the_best_pair_first() -> None:
    near, nearer = (0.0, 0.0, 0.6, 1.0), (0.0, 0.0, 0.52, 1.0)
    assert match_boxes([near, nearer], [LEFT]) == 1
    assert match_boxes([nearer], [LEFT, near]) == 1
    assert match_boxes([near, nearer], [LEFT, near]) == 2
    assert match_boxes([FULL], [LEFT]) == 1  # IoU is exactly 0.5
    assert match_boxes([], [LEFT]) == match_boxes([LEFT], []) == 0


def test_matching_equals_a_numpy_greedy_on_random_boxes() -> None:
    rng = np.random.default_rng(7)
    total = 0
    for _ in range(60):
        true = random_boxes(rng, int(rng.integers(1, 5)))
        pred = np.concatenate([true + rng.normal(0, 0.06, true.shape), random_boxes(rng, 2)])
        pred = np.concatenate([np.minimum(pred[:, :2], pred[:, 2:]), np.maximum(pred[:, :2], pred[:, 2:])], axis=1)
        pairs = sorted(((numpy_iou(p, t), i, j) for i, p in enumerate(pred) for j, t in enumerate(true)), reverse=True)
        used_pred, used_true = set(), set()
        for value, i, j in pairs:
            if value >= 0.5 and i not in used_pred and j not in used_true:
                used_pred.add(i)
                used_true.add(j)
        assert match_boxes([tuple(p) for p in pred], [tuple(t) for t in true]) == len(used_true)
        total += len(used_true)
    assert total > 30
