"""TWIST & SCOUT's Table 6: a skill in plain words from another domain, here the names of new objects."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tools.experiments.paper_report import Finding, Table
from tools.experiments.paper_rows import SHARDS, Row, World
from tools.experiments.paper_tables import twist
from ts_lightning.data.sample import Answer, Sample, SampleRegion
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.grounding import SKILL, record
from ts_lightning.pipelines.toy_world.new_objects import FIRST_SEED, KINDS, sample_new_scene
from ts_lightning.pipelines.toy_world.shards import with_picture

NAMES = f"{SHARDS}/names-*.tar"


def names(split: str, total: int) -> Iterator[Sample]:
    """What the new object in a box is called; one question a scene, answered on the skill's path."""
    for seed in range(FIRST_SEED[split] + 500_000_000, FIRST_SEED[split] + 500_000_000 + total):
        scene = sample_new_scene(seed)
        thing = Random(seed).choice([thing for thing in scene.things if thing.shape in KINDS])
        sample = record(scene, SKILL, "name", "What shape is in {region:0}?", thing.shape, [], Answer(thing.shape))
        sample.regions, sample.answers = [SampleRegion(box=scene.box(thing))], [thing.shape]
        yield with_picture(sample, scene)


def render(folder: Path, share: float) -> None:
    """The toy world, and questions for the names of new objects."""
    twist.render(folder, share)
    if not list(folder.glob("test_names-*.tar")):
        write_shards(names("train", max(16, int(8000 * share))), folder, "names", 2000)
        write_shards(names("test", max(8, int(400 * share))), folder, "test_names", 2000)


WORLD = World(
    render, {"names": ("test_names-*.tar", "answers"), "understanding": ("test_understanding-*.tar", "answers")}
)
BASE = Row("base")
MIXED = {"train": None, "mix": {"names": {"shards": NAMES}, "understanding": {"shards": twist.REPLAY}}}
JOINT = twist.run(
    "full tuning on both", "fit/toy_full.yaml", {"data": {"init_args": MIXED}}, paper="TextVQA 31.7, VQA-RAD 28.5"
)
TWIST = twist.run("TWIST", "fit/toy_twist.yaml", twist.train(shards=NAMES), paper="TextVQA 51.4, VQA-RAD 63.1")

TABLES = (
    Table(
        "6",
        "TWIST & SCOUT, Table 6: a second domain in words",
        WORLD,
        {"names/accuracy": "names of new objects", "understanding/accuracy": "understanding"},
        (BASE, JOINT, TWIST),
        (
            Finding("TWIST learns the names better than tuning on both", JOINT.name, TWIST.name, "names"),
            Finding("tuning on both costs understanding", JOINT.name, BASE.name, "understanding"),
            Finding(
                "TWIST is right where the base is",
                BASE.name,
                TWIST.name,
                "understanding",
                True,
            ),
        ),
    ),
)
