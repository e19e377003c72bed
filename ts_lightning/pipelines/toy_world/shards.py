"""Samples and shards of the toy world: which scenes belong to which split, one generator a split."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import NamedTuple

from ts_lightning.data.record import question_key
from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world import grounding, new_objects, regions
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.pipelines.toy_world.render import jpeg, render
from ts_lightning.pipelines.toy_world.scene import SHAPES, Scene, sample_scene
from ts_lightning.pipelines.toy_world.understanding import understanding_questions

Maker = Callable[..., Sample | None]


class Domain(NamedTuple):
    """Scenes by their seed, the shapes that are asked about, and the share of each kind of question in a split."""

    tags: tuple[str, ...]
    scene: Callable[[int], Scene]
    shapes: tuple[str, ...]
    mix: dict[str, tuple[Maker, float]]
    first_seed: dict[str, int]


# Below the scenes of the tiny base's lessons; its vision tower was trained on scenes of "dev".
FIRST_SEED = {"train": 0, "val": 4_000_000, "test": 6_000_000, "dev": 8_000_000}
# TWIST's mix of REC, captions and step-by-step data, weighted to small models.
MIX: dict[str, tuple[Maker, float]] = {
    "localization": (grounding.localization, 0.35),
    "rec": (grounding.rec, 0.35),
    "scout": (grounding.steps, 0.16),
    "negative": (grounding.negative, 0.07),
    "caption": (grounding.caption, 0.07),
}
NEW_MIX = MIX | {
    "localization": (grounding.localization, 0.0),
    "rec": (grounding.rec, 0.2),
    "no_color": (grounding.no_color, 0.5),
}
KNOWN = Domain((), sample_scene, SHAPES, MIX, FIRST_SEED)
NEW = Domain(("new",), new_objects.sample_new_scene, new_objects.KINDS, NEW_MIX, new_objects.FIRST_SEED)
QUESTIONS = 4  # about a scene, at most


def grounding_samples(
    split: str,
    total: int,
    subtasks: tuple[str, ...] = tuple(MIX),
    pictures: bool = True,
    per_scene: int = 1,
    domain: Domain = KNOWN,
) -> Iterator[Sample]:
    """`total` grounding samples of a split, up to `per_scene` different ones about each scene."""
    weights = [domain.mix[name][1] for name in subtasks]
    seed, made = domain.first_seed[split], 0
    while made < total:
        scene, random = domain.scene(seed), Random(seed)
        things = [thing for thing in scene.things if thing.shape in domain.shapes]
        asked: dict[str, Sample] = {}
        for _ in range(per_scene):
            maker = domain.mix[random.choices(subtasks, weights)[0]][0]
            sample = maker(scene, random.choice(things), random)
            if sample is not None and made + len(asked) < total:
                asked.setdefault(sample.turns[0].text, sample)
        picture = [jpeg(render(scene))] if pictures and asked else []
        for j, sample in enumerate(asked.values()):
            sample.image_bytes, sample.tags = picture, [*sample.tags, *domain.tags]
            if per_scene > 1:
                sample.id, sample.key = f"{sample.id}-{j}", question_key(sample.key, j, per_scene)
            yield sample
        seed, made = seed + 1, made + len(asked)


def training_samples(total: int) -> Iterator[Sample]:
    """Known and new objects in turn, up to `QUESTIONS` questions about a scene."""
    halves = (total - total // 2, KNOWN, tuple(MIX)), (total // 2, NEW, tuple(NEW_MIX))
    streams = [grounding_samples("train", n, names, per_scene=QUESTIONS, domain=domain) for n, domain, names in halves]
    for pair in zip_longest(*streams):
        yield from filter(None, pair)


def understanding_samples(split: str, total: int, pictures: bool = True) -> Iterator[Sample]:
    """`total` understanding samples of a split, the subtasks in turn, each about a scene of its own."""
    seed, made = FIRST_SEED[split] + 1_000_000, 0
    while made < total:
        scene, random = sample_scene(seed), Random(seed)
        questions = sorted(understanding_questions(scene, random), key=lambda q: _hash(q.subtask, seed))
        question = questions[0]
        sample = grounding.record(
            scene, "understanding", question.subtask, question.text, question.answer, [], Answer(question.answer)
        )
        sample.regions = [SampleRegion(box=box) for box in question.regions]
        sample.answers = [question.answer]
        seed, made = seed + 1, made + 1
        yield with_picture(sample, scene) if pictures else sample


def with_picture(sample: Sample, scene: Scene) -> Sample:
    """The sample with its scene's JPEG bytes."""
    sample.image_bytes = [jpeg(render(scene))]
    return sample


def write_toy_shards(folder: Path, train: int, val: int, per_shard: int = 2000) -> bool:
    """Write `train-*.tar` and `val_{grounding,new,steps,understanding}-*.tar` into `folder`.

    Half of the training questions, and val_new, are about objects of new kinds. A training scene has up to `QUESTIONS`
    questions, a held-out one has one. Does nothing, and returns False, where `rendered.txt` says that
    these numbers have been rendered.
    """
    stamp = folder / "rendered.txt"
    wanted = f"train {train} of {QUESTIONS} a scene, known and new objects, val {val} per shard {per_shard}\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    stamp.unlink(missing_ok=True)  # what a killed run leaves is not what was asked for
    write_shards(training_samples(train), folder, "train", per_shard)
    write_shards(grounding_samples("val", val, ("localization", "rec")), folder, "val_grounding", per_shard)
    write_shards(grounding_samples("val", val, ("no_color",), domain=NEW), folder, "val_new", per_shard)
    write_shards(grounding_samples("val", val // 2, ("scout", "negative")), folder, "val_steps", per_shard)
    write_shards(understanding_samples("val", val), folder, "val_understanding", per_shard)
    stamp.write_text(wanted)
    return True


def write_region_shards(folder: Path, train: int, val: int, per_shard: int = 2000) -> bool:
    """Write `image_train-*.tar` (stage 1 of ChatSpot), `region_train-*.tar` (stage 2) and `val_region-*.tar`.

    Does nothing, and returns False, where `regions.txt` says that these numbers have been rendered.
    """
    stamp, wanted = folder / "regions.txt", f"train {train} val {val} per shard {per_shard}\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    stamp.unlink(missing_ok=True)  # what a killed run leaves is not what was asked for
    write_shards(regions.image_conversations(max(1, train // 4)), folder, "image_train", per_shard)
    write_shards(regions.region_conversations(train), folder, "region_train", per_shard)
    write_shards(regions.region_questions(val), folder, "val_region", per_shard)
    stamp.write_text(wanted)
    return True


def write_multi_image_shards(
    folder: Path, train: int, rl: int, val: int, style: str = "grounded", per_shard: int = 2000
) -> bool:
    """Write `mirg_train-*.tar` (trajectories of this style), `mirg_rl-*.tar` (prompts for GRPO) and `val_mirg-*.tar`.

    Does nothing, and returns False, where `mirg.txt` says that these numbers have been rendered.
    """
    stamp, wanted = folder / "mirg.txt", f"train {train} rl {rl} val {val} style {style} per shard {per_shard}\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    stamp.unlink(missing_ok=True)  # what a killed run leaves is not what was asked for
    for prefix, split, total in (("mirg_train", "sft", train), ("mirg_rl", "rl", rl), ("val_mirg", "val", val)):
        write_shards(multi_image_samples(split, total, style), folder, prefix, per_shard)
    stamp.write_text(wanted)
    return True


def _hash(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{text} {seed}".encode()).digest()
