"""Rewards: plain functions `reward(completion, sample) -> float`; any dotted path is usable from a YAML.

Options are keyword arguments, off by default. The targets of a sample are the regions of its answer.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import isfunction, signature
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ts_lightning.data.sample import Sample, SampleRegion
from ts_lightning.grounding.answer import Answer, Object
from ts_lightning.grounding.boxes import Box, area, iou
from ts_lightning.grounding.regions import Region
from ts_lightning.rl.completion import Completion

Reward = Callable[[Completion, Sample], float]

MODULES = ("ts_lightning.rl", "ts_lightning.rl.rewards")
EXTRA_VARIABLE = "TS_LIGHTNING_CLASS_PREFIXES"
FORMS = ("iou", "giou", "centre")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def format_reward(completion: Completion, sample: Sample) -> float:
    """1 for `<think>...</think><answer>...</answer>` and nothing else, each tag once, no part blank; else 0."""
    match = _FORMAT.fullmatch(completion.text)
    whole = completion.stopped and match is not None and all(completion.text.count(tag) == 1 for tag in _TAGS)
    return float(whole and match is not None and bool(match[1].strip()) and bool(match[2].strip()))


def image_reward(completion: Completion, sample: Sample, empty_answers: bool = False) -> float:
    """MIRG-RL eq. 2: 1 if the object is said to be in the right picture; with several targets the share that is.

    empty_answers: where there is no such object, 1 for an answer without objects (otherwise 0).
    """
    targets = target_boxes(sample)
    if not targets:
        return _empty(completion) if empty_answers else 0.0
    pairs = zip(targets, first_objects(answer_objects(completion, sample), len(targets)), strict=True)
    return sum(thing is not None and thing.image == image for (image, _), thing in pairs) / len(targets)


def object_reward(
    completion: Completion,
    sample: Sample,
    same_image: bool = False,
    matching: bool = False,
    empty_answers: bool = False,
    form: str = "iou",
) -> float:
    """MIRG-RL eq. 1: IoU of the answer's box with the target, whichever picture it is said to be in.

    It is the box that evaluation scores: the first of the answer. Several targets take the first boxes in their order,
    and the mean of their IoUs. same_image: boxes on the wrong picture count 0. matching: targets and objects are paired
    for the largest sum of IoUs, which is divided by the larger number of both. empty_answers: where there is no such
    object, 1 for an answer without objects. form: as in `overlap`.
    """
    targets = target_boxes(sample)
    if not targets:
        return _empty(completion) if empty_answers else 0.0

    said = answer_objects(completion, sample)

    def value(target: tuple[int, Box], thing: Object | None) -> float:
        if thing is None or (same_image and thing.image != target[0]):
            return 0.0
        return overlap(thing.box, target[1], form)

    if matching:
        table = [[value(target, thing) for thing in said] for target in targets]
        return best_matching(table) / max(len(targets), len(said))
    pairs = zip(targets, first_objects(said, len(targets)), strict=True)
    return sum(value(*pair) for pair in pairs) / len(targets)


def f1_reward(completion: Completion, sample: Sample, form: str = "iou") -> float:
    """2 M / (targets + boxes of the answer), M the best matching's sum of overlaps on the right pictures.

    It is the F1 of precision M / boxes and recall M / targets. Where there is no such object: 1 for an answer without
    objects, else 0.
    """
    targets = target_boxes(sample)
    return f1(targets, _places(answer_objects(completion, sample)), form) if targets else _empty(completion)


def thought_reward(completion: Completion, sample: Sample, form: str = "iou") -> float:
    """F1 of the boxes before the answer with all regions of the sample, by optimal matching on the right pictures.

    A box that is given twice counts once. 0 where the thought has no box or the sample no region: nothing to compare.
    """
    answer = completion.answer
    thought = [] if answer is None else [t for t in _areas(answer, sample.regions) if t.start < answer.span[0]]
    regions = [(region.image, box) for region in sample.regions for box in _boxes(region)]
    return f1(regions, list(dict.fromkeys(_places(thought))), form)


def strict_reward(completion: Completion, sample: Sample) -> float:
    """1 for an answer that ended by itself and whose boxes are all in the codec's exact form; else 0.

    One box at least is wanted where the sample has a target; where that is a point or a polygon, any region.
    """
    answer = completion.answer
    if answer is None or not completion.stopped or answer.unread or not completion.text.strip():
        return 0.0
    other = any(region.points is not None or region.polygon for region in sample.answer_regions)
    if sample.answer_regions and not (answer.objects if other else completion.objects):
        return 0.0
    return float(all(thing.canonical for thing in answer.objects))


def repeat_reward(completion: Completion, sample: Sample, same: float = 0.9) -> float:
    """Minus the share of the answer's boxes that lie (IoU of `same` or more) on an earlier one of their picture."""
    places = _places(answer_objects(completion, sample))
    repeated = [
        any(image == before and iou(box, other) >= same for before, other in places[:i])
        for i, (image, box) in enumerate(places)
    ]
    return -sum(repeated) / len(repeated) if repeated else 0.0


def length_reward(completion: Completion, sample: Sample, limit: int, buffer: int) -> float:
    """DAPO eq. 13: 0 up to limit - buffer tokens, from there (limit - buffer - tokens) / buffer, -1 beyond `limit`."""
    over = len(completion.token_ids) - (limit - buffer)
    return -min(max(over, 0) / buffer, 1.0)


def f1(truth: Sequence[tuple[int | None, Box]], said: Sequence[tuple[int | None, Box]], form: str = "iou") -> float:
    """2 M / (truth + said) of (picture, box) pairs, M their best matching; on different pictures they overlap by 0."""
    if not truth or not said:
        return 0.0
    table = [[overlap(b, box, form) if a == image else 0.0 for a, b in said] for image, box in truth]
    return 2 * best_matching(table) / (len(truth) + len(said))


def overlap(box: Box, target: Box, form: str = "iou") -> float:
    """How well a box fits, in [0, 1]; 1 for the same box.

    "iou"; "giou": (1 + GIoU) / 2, GIoU = IoU - (hull - union) / hull, which grows as distant boxes come nearer;
    "centre": 1 - d^2 / c^2, d the distance of the centres, c the diagonal of the hull (DIoU's second term).
    """
    if form == "iou":
        return iou(box, target)
    left, top = min(box[0], target[0]), min(box[1], target[1])
    right, bottom = max(box[2], target[2]), max(box[3], target[3])
    if form == "giou":
        hull, shared = (right - left) * (bottom - top), iou(box, target)
        union = (area(box) + area(target)) / (1 + shared)  # shared = intersection / union
        return (1 + shared - (hull - union) / hull) / 2
    if form == "centre":
        across, down = box[0] + box[2] - target[0] - target[2], box[1] + box[3] - target[1] - target[3]
        return 1 - (across**2 + down**2) / 4 / ((right - left) ** 2 + (bottom - top) ** 2)
    raise ValueError(f"form: seen {form!r}, expected one of {', '.join(FORMS)}")


def target_boxes(sample: Sample) -> list[tuple[int, Box]]:
    """(picture, box) of every target, none where there is no such object; a polygon's is the box around it.

    ValueError where a region names a picture that is not there, or has no box: points.
    """
    targets = []
    for index in sample.answer.regions if sample.answer else ():
        region = sample.regions[index]
        if not 0 <= region.image < len(sample.images):
            raise ValueError(
                f"{sample.where}: regions[{index}].image: seen {region.image}, "
                f"expected the index of one of {len(sample.images)} pictures"
            )
        if not (boxes := _boxes(region)):
            seen = "points" if region.points is not None else "no place"
            raise ValueError(
                f"{sample.where}: regions[{index}]: seen {seen}, expected a box or a polygon to compare with"
            )
        targets += [(region.image, box) for box in boxes]
    return targets


def answer_objects(completion: Completion, sample: Sample) -> list[Object]:
    """The boxes of the answer, in order; where a target is a polygon its polygons, too, each as the box around it."""
    answer = completion.answer
    if answer is None or not any(region.polygon for region in sample.answer_regions):
        return completion.objects
    start, end = answer.span
    inside = [thing for thing in _areas(answer, sample.answer_regions) if start <= thing.start < end]
    return inside if any(not thing.is_box for thing in inside) else completion.objects


def first_objects(said: Sequence[Object], count: int) -> list[Object | None]:
    """The first `count` of them, None for each that is missing."""
    first: list[Object | None] = list(said[:count])
    return first + [None] * (count - len(first))


def best_matching(table: list[list[float]]) -> float:
    """The largest sum of entries with no two in one row or column."""
    if not table or not table[0]:
        return 0.0
    values = np.array(table)
    return float(values[linear_sum_assignment(values, maximize=True)].sum())


REWARDS = (
    *(format_reward, image_reward, object_reward, f1_reward, thought_reward),
    *(strict_reward, repeat_reward, length_reward),
)


def load_rewards(paths: Mapping[str, str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Reward]:
    """The functions named by dotted paths, with their options; ValueError in one line for what can't be used."""
    if unknown := sorted(options.keys() - paths.keys()):
        raise ValueError(f"reward_options: seen {unknown[0]!r}, expected some of {', '.join(paths)}")
    extra = [name.strip() for name in os.environ.get(EXTRA_VARIABLE, "").split(",") if name.strip()]
    own = [f"{module}.{reward.__name__}" for module in MODULES for reward in REWARDS]
    rewards: dict[str, Reward] = {}
    for name, path in paths.items():
        module, _, function = path.rpartition(".")
        if path not in own and not _under(module, extra):
            expected = f"expected one of {', '.join(own[: len(REWARDS)])} (of your own packages by --allow_classes)"
            raise ValueError(f"rewards.{name}: seen {path!r}, {expected}")
        try:
            reward = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"rewards.{name}: seen {path!r} ({error}), expected a function") from None
        home = str(getattr(reward, "__module__", ""))  # a module may have imported what is no reward
        if reward not in REWARDS and not (isfunction(reward) and _under(home, extra)):
            raise ValueError(f"rewards.{name}: seen {path!r} of {home!r}, expected a function of {', '.join(extra)}")
        given = options.get(name, {})
        _check_options(f"reward_options.{name}", reward, given)
        rewards[name] = partial(reward, **given) if given else reward
    return rewards


def _check_options(where: str, reward: Reward, given: Mapping[str, Any]) -> None:
    """ValueError for a reward's options that are missing, unknown or, of our own rewards, out of range."""
    try:
        signature(reward).bind(None, None, **given)
    except TypeError as error:
        takes = ", ".join([*signature(reward).parameters][2:]) or "none"
        raise ValueError(f"{where}: seen {dict(given)} ({error}), expected options of {takes}") from None
    if reward not in REWARDS:
        return
    if (form := given.get("form", FORMS[0])) not in FORMS:
        raise ValueError(f"{where}.form: seen {form!r}, expected one of {', '.join(FORMS)}")
    if (buffer := given.get("buffer", 1)) < 1:
        raise ValueError(f"{where}.buffer: seen {buffer}, expected at least 1")


def _under(module: str, prefixes: Sequence[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def score(rewards: Mapping[str, Reward], completion: Completion, sample: Sample) -> dict[str, float]:
    """Every reward of one completion; ValueError names the reward and the sample where one raises or is no number."""
    values = {}
    for name, reward in rewards.items():
        try:
            value = float(reward(completion, sample))
        except Exception as error:  # whatever a user's function raises
            raise ValueError(f"{sample.where}: reward {name}: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise ValueError(f"{sample.where}: reward {name}: seen {value}, expected a finite number")
        values[name] = value
    return values


def _empty(completion: Completion) -> float:
    """1 for an answer that ended by itself, says something and has no object: there is none."""
    answer = completion.answer
    said = answer is not None and completion.text[slice(*answer.span)].strip()
    return float(completion.stopped and bool(said) and answer is not None and not answer.objects and not answer.unread)


def _boxes(region: SampleRegion) -> list[Box]:
    return [Region(tuple(region.polygon)).box] if region.polygon else region.all_boxes


def _areas(answer: Answer, regions: Sequence[SampleRegion]) -> list[Object]:
    """The boxes of a text, and its polygons where one of the regions is a polygon."""
    polygons = any(region.polygon for region in regions)
    return [thing for thing in answer.objects if thing.is_box or (polygons and thing.region.kind == "polygon")]


def _places(things: Sequence[Object]) -> list[tuple[int | None, Box]]:
    return [(thing.image, thing.box) for thing in things]
