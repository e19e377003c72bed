"""Rewards: plain functions `reward(completion, sample) -> float`; any dotted path is usable from a YAML.

Options are keyword arguments, off by default. The targets of a sample are the regions of its answer.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import isfunction
from typing import Any

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.answer import Object
from ts_lightning.grounding.boxes import Box, iou
from ts_lightning.rl.completion import Completion

Reward = Callable[[Completion, Sample], float]

MODULES = ("ts_lightning.rl", "ts_lightning.rl.rewards")
EXTRA_VARIABLE = "TS_LIGHTNING_CLASS_PREFIXES"
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
    pairs = zip(targets, first_objects(completion, len(targets)), strict=True)
    return sum(thing is not None and thing.image == image for (image, _), thing in pairs) / len(targets)


def object_reward(
    completion: Completion,
    sample: Sample,
    same_image: bool = False,
    matching: bool = False,
    empty_answers: bool = False,
) -> float:
    """MIRG-RL eq. 1: IoU of the answer's box with the target, whichever picture it is said to be in.

    It is the box that evaluation scores: the first of the answer. Several targets take the first boxes in their order,
    and the mean of their IoUs. same_image: boxes on the wrong picture count 0. matching: targets and objects are paired
    for the largest sum of IoUs, which is divided by the larger number of both. empty_answers: where there is no such
    object, 1 for an answer without objects.
    """
    targets = target_boxes(sample)
    if not targets:
        return _empty(completion) if empty_answers else 0.0

    def overlap(target: tuple[int, Box], thing: Object | None) -> float:
        if thing is None or (same_image and thing.image != target[0]):
            return 0.0
        return iou(thing.box, target[1])

    if matching:
        table = [[overlap(target, thing) for thing in completion.objects] for target in targets]
        return best_matching(table) / max(len(targets), len(completion.objects))
    pairs = zip(targets, first_objects(completion, len(targets)), strict=True)
    return sum(overlap(*pair) for pair in pairs) / len(targets)


def target_boxes(sample: Sample) -> list[tuple[int, Box]]:
    """(picture, box) of every target; ValueError where a region names a picture that is not there."""
    targets = []
    for index in sample.answer.regions if sample.answer else ():
        region = sample.regions[index]
        if not 0 <= region.image < len(sample.images):
            raise ValueError(
                f"{sample.where}: regions[{index}].image: seen {region.image}, "
                f"expected the index of one of {len(sample.images)} pictures"
            )
        targets += [(region.image, box) for box in region.all_boxes]
    return targets


def first_objects(completion: Completion, count: int) -> list[Object | None]:
    """The first `count` boxes of the answer in their order, None for each that is missing."""
    first: list[Object | None] = list(completion.objects[:count])
    return first + [None] * (count - len(first))


def best_matching(table: list[list[float]]) -> float:
    """The largest sum of entries with no two in one row or column."""
    if not table or not table[0]:
        return 0.0
    rows, columns = len(table), len(table[0])
    if rows > columns:
        return best_matching([list(column) for column in zip(*table, strict=True)])
    # shortest augmenting paths (Kuhn-Munkres with potentials) over costs -value, rows <= columns
    u, v, owner = [0.0] * (rows + 1), [0.0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, way, used = [math.inf] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            used[column], here, step, following = True, owner[column], math.inf, 0
            for j in range(1, columns + 1):
                if not used[j]:
                    cost = -table[here - 1][j - 1] - u[here] - v[j]
                    if cost < least[j]:
                        least[j], way[j] = cost, column
                    if least[j] < step:
                        step, following = least[j], j
            for j in range(columns + 1):
                if used[j]:
                    u[owner[j]] += step
                    v[j] -= step
                else:
                    least[j] -= step
            column = following
        while column:
            owner[column] = owner[way[column]]
            column = way[column]
    return sum(table[owner[j] - 1][j - 1] for j in range(1, columns + 1) if owner[j])


REWARDS = (format_reward, image_reward, object_reward)


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
        rewards[name] = partial(reward, **options[name]) if name in options else reward
    return rewards


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
    match = _FORMAT.fullmatch(completion.text)
    return float(match is not None and bool(match[2].strip()) and not completion.objects)
