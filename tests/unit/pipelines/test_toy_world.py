"""The toy world: exact boxes, deterministic records, right answers, prompts that say which task they are."""

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tools.experiments.tiny_base.curriculum import FIRST_TRAINING_SEED, lesson
from tools.experiments.tiny_base.patches import FIRST_PATCH_SEED, patch_labels
from ts_lightning.data import index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.write import write_shards
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.pipelines.toy_world import multi_image, regions, shards
from ts_lightning.pipelines.toy_world.new_objects import KINDS, sample_new_scene
from ts_lightning.pipelines.toy_world.render import RGB, render
from ts_lightning.pipelines.toy_world.scene import (
    COLORS,
    SHAPES,
    Scene,
    Thing,
    attribute_phrases,
    relation_phrases,
    sample_scene,
)
from ts_lightning.pipelines.toy_world.shards import (
    FIRST_SEED,
    NEW,
    QUESTIONS,
    grounding_samples,
    training_samples,
    understanding_samples,
)
from ts_lightning.pipelines.toy_world.understanding import position_questions, understanding_questions

SCENE = Scene(
    seed=1,
    width=100,
    height=100,
    things=(
        Thing("square", "red", "large", (10, 10, 50, 50)),
        Thing("square", "red", "small", (60, 20, 80, 40)),
        Thing("star", "blue", "small", (20, 70, 40, 90)),
    ),
)


def test_a_killed_rendering_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards.write_toy_shards(tmp_path, 8, 4)
    assert not shards.write_toy_shards(tmp_path, 8, 4)

    def killed(samples: object, folder: Path, prefix: str, per_shard: int) -> None:
        if prefix != "train":
            raise KeyboardInterrupt
        write_shards(samples, folder, prefix, per_shard)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            shards.write_toy_shards(tmp_path, 20, 4)
    assert index_shards(f"{tmp_path}/train-*.tar").num_samples == 20
    assert shards.write_toy_shards(tmp_path, 8, 4)
    assert index_shards(f"{tmp_path}/train-*.tar").num_samples == 8


@pytest.mark.parametrize("shape", [*SHAPES, *KINDS])
def test_objects_touch_all_four_edges_of_their_box(shape: str) -> None:
    scene = Scene(3, 120, 90, (Thing(shape, "black", "large", (20, 15, 71, 64)),))
    dark = (np.asarray(render(scene)) == RGB["black"]).all(-1)
    rows, columns = np.where(dark)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (20, 15, 71, 64)


def test_scenes_and_records_depend_on_the_seed_alone() -> None:
    assert sample_scene(7) == sample_scene(7)
    one, two = (list(grounding_samples("train", 5)) for _ in range(2))
    assert [(s.to_json(), s.image_bytes) for s in one] == [(s.to_json(), s.image_bytes) for s in two]


def test_new_objects_can_not_be_guessed() -> None:
    scenes = [sample_new_scene(seed) for seed in range(200)]
    rivals = [sum(thing.shape in KINDS for thing in scene.things) for scene in scenes]
    assert min(rivals) >= 2
    assert sum(rivals) / len(rivals) > 3  # a guess among the new ones is right in less than a third
    asked = list(grounding_samples("dev", 30, ("no_color",), domain=NEW))
    assert not [s.question for s in asked if set(s.question.replace("?", "").split()) & set(COLORS)]
    assert [s.key for s in asked] == list(dict.fromkeys(s.key for s in asked))
    assert not {s.regions[0].category for s in asked} - set(KINDS)


def test_training_has_known_and_new_objects_in_turn() -> None:
    samples = list(training_samples(40))
    assert len({s.key for s in samples}) == 40
    assert [("new" in s.tags) for s in samples] == [False, True] * 20
    assert len({s.key.split("#")[0] for s in samples}) < 2 * 40 / QUESTIONS + 6


def test_phrases_single_out_their_object() -> None:
    large, small, star = SCENE.things
    assert attribute_phrases(SCENE, star) == ["star", "blue object", "blue star", "small star", "small blue star"]
    assert attribute_phrases(SCENE, large) == ["large square", "large red square"]
    assert "rightmost square" in relation_phrases(SCENE, small)
    assert "square right of the star" in relation_phrases(SCENE, small)
    assert "square right of the star" not in relation_phrases(SCENE, large)  # by centres it is above, not right


def test_relations_by_hand() -> None:
    large, small, star = SCENE.things
    assert SCENE.related(large, "left of", small)
    assert not SCENE.related(large, "above", small)  # centres 30 and 30: no margin
    assert SCENE.related(large, "above", star)


def test_answers_by_hand() -> None:
    scene = Scene(1, 100, 100, (SCENE.things[2],))
    answers = {q.text: q.answer for q in position_questions(scene, scene.things[0], Random(0))}
    assert {text.split(" of the")[0].removeprefix("What is the "): a for text, a in answers.items()} == {
        "range across": "four to eight",
        "range down": "fourteen to eighteen",
        "corner": "four and fourteen",
        "middle": "six and sixteen",
        "size": "four by four",
    }
    asked = {q.subtask: q for seed in range(20) for q in understanding_questions(scene, Random(seed))}
    assert asked["color"].answer == "blue"
    assert asked["shape"].answer == "star"
    assert asked["size"].answer == "small"


def test_patch_labels_by_hand() -> None:
    labels = patch_labels(SCENE, 4)  # patches of 25 pixels
    ranges = [3, 11, 3, 11]  # two to ten twentieths across and down, and class 0 is the background
    assert labels[0] == [COLORS.index("red") + 1, SHAPES.index("square") + 1, 2, *ranges]
    assert labels[3] == [0] * 7
    assert labels[2 * 4 + 1] == [0] * 7  # the star covers less than a quarter of it


def test_no_prompt_stands_under_both_tasks() -> None:
    """A bare question is understanding; every prompt of the skill says that it wants boxes."""
    grounding = {s.turns[0].text for s in grounding_samples("train", 1500, pictures=False)}
    understanding = {s.turns[0].text for s in understanding_samples("train", 1500, pictures=False)}
    for seed in range(60):
        made = lesson(seed)
        understanding |= {"<image>\n" + question for question, _ in made.pairs if made.images}
    assert not grounding & understanding
    assert all("box" in text for text in grounding)
    assert not any("box" in text for text in understanding)


def test_the_base_never_answers_with_a_box_of_a_picture() -> None:
    codec = get_codec("scout")
    for seed in range(60):
        made = lesson(seed)
        if made.images:
            assert not any(codec.parse(answer) for _, answer in made.pairs)


def test_held_out_scenes_are_not_trained_on() -> None:
    assert max(FIRST_SEED.values()) + 2_000_000 <= FIRST_TRAINING_SEED
    ranges = sorted(FIRST_SEED.values())
    assert all(b - a >= 2_000_000 for a, b in pairwise(ranges))
    assert all(FIRST_SEED[split] + 2_000_000 <= FIRST_PATCH_SEED for split in ("train", "val", "test"))
    assert all(b - a >= 1_000_000 for a, b in pairwise(sorted(multi_image.FIRST_SEED.values())))
    assert all(b - a >= 1_000_000_000 for a, b in pairwise(sorted(regions.FIRST_SEED.values())))


def test_a_scene_has_several_questions_in_one_record(tmp_path: Path) -> None:
    samples = list(grounding_samples("train", 50, per_scene=8))
    assert len({s.id for s in samples}) == len({(s.images[0].name, s.turns[0].text) for s in samples}) == 50
    write_shards(samples, tmp_path, "train")
    manifest = index_shards(f"{tmp_path}/train-*.tar")
    rows = manifest.in_rows(8)
    assert manifest.num_samples == 50
    assert rows.num_rows == len({s.images[0].name for s in samples}) < 20
    first = ShardReader(rows).read_row(0)
    assert [s.turns for s in first] == [s.turns for s in samples[: len(first)]]
