"""The multi-image toy tasks: the truth of every task, seen from the pictures' scenes alone; trajectories."""

from random import Random

import pytest

from ts_lightning.data.sample import Sample
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import get_codec
from ts_lightning.grounding.coordinates import CoordinateSpace
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.multi_image import FIRST_SEED, TASKS, Story, multi_image_samples
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.rewards import format_reward, image_reward, object_reward

CODEC = get_codec("mirg", CoordinateSpace("100"))
PIXELS = get_codec("mirg", CoordinateSpace("pixels"))


def stories(task: str, count: int = 25) -> list[Story]:
    found, seed = [], FIRST_SEED["val"]
    while len(found) < count:
        story = TASKS[task](seed, Random(seed))
        seed += 1
        if story is not None:
            found.append(story)
    return found


def kinds(story: Story, picture: int) -> list[tuple[str, str]]:
    return [(thing.color, thing.shape) for thing in story.scenes[picture].things]


def target(story: Story) -> tuple[str, str]:
    return story.target[1].color, story.target[1].shape


def test_there_are_the_ten_tasks_of_mig_bench() -> None:
    names = {"common_object", "static_difference", "robust_difference", "object_tracking", "multi_view"}
    assert set(TASKS) == names | {"region", "refer", "group_grounding", "reasoning", "correspondence"}


@pytest.mark.parametrize("task", TASKS)
def test_every_story_is_sound(task: str) -> None:
    for story in stories(task):
        assert 2 <= len(story.scenes) <= 6
        picture, thing = story.target
        assert thing in story.scenes[picture].things
        if story.query:
            assert story.query[1] in story.scenes[story.query[0]].things
        for scene in story.scenes:
            for one in scene.things:
                x1, y1, x2, y2 = one.pixels
                assert 0 <= x1 < x2 <= scene.width
                assert 0 <= y1 < y2 <= scene.height
            boxes = [one.pixels for one in scene.things]
            assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_common_object_is_the_only_one_in_all() -> None:
    for story in stories("common_object"):
        shared = set.intersection(*(set(kinds(story, i)) for i in range(len(story.scenes))))
        assert shared == {target(story)}
        assert kinds(story, story.target[0]).count(target(story)) == 1


def test_differences_are_of_one_colour() -> None:
    for task in ("static_difference", "robust_difference"):
        for story in stories(task):
            assert target(story) not in kinds(story, 0)
            before, after = sorted(kinds(story, 0)), sorted(kinds(story, 1))
            assert len(set(after) - set(before)) == 1
            same = [t.pixels for t in story.scenes[0].things] == [t.pixels for t in story.scenes[1].things]
            assert same == (task == "static_difference")
            assert (story.scenes[0].seed == story.scenes[1].seed) == (task == "static_difference")


def test_tracked_and_mirrored_objects_are_the_asked_ones() -> None:
    for task in ("object_tracking", "multi_view"):
        for story in stories(task):
            assert story.query is not None
            asked = story.query[1]
            assert (asked.color, asked.shape) == target(story)
            assert kinds(story, story.target[0]).count(target(story)) == 1
            if task == "multi_view":
                x1, _, x2, _ = asked.pixels
                assert story.target[1].pixels[0] == story.scenes[0].width - x2
                assert story.target[1].pixels[2] == story.scenes[0].width - x1


def test_shown_objects_are_found_once() -> None:
    for story in stories("region"):
        assert kinds(story, 1) == [target(story)]
        assert story.target[0] == 0
        assert kinds(story, 0).count(target(story)) == 1
    for story in stories("refer"):
        assert kinds(story, 0) == [target(story)]
        assert sum(kinds(story, i).count(target(story)) for i in range(1, len(story.scenes))) == 1


def test_words_fit_one_object() -> None:
    for story in stories("group_grounding"):
        assert sum(kinds(story, i).count(target(story)) for i in range(len(story.scenes))) == 1
        assert " ".join(target(story)) in story.question
    for story in stories("reasoning"):
        shape = story.question.split("color of the ")[1].split()[0]
        (anchor,) = [t for t in story.scenes[0].things if t.shape == shape]
        assert [t for t in story.scenes[1].things if t.color == anchor.color] == [story.target[1]]
    for story in stories("correspondence"):
        assert story.query is not None
        same = [t for t in story.scenes[1].things if t.shape == story.query[1].shape]
        assert same == [story.target[1]]
        assert same[0].color != story.query[1].color


def test_samples_of_a_split_are_their_own() -> None:
    first, again = list(multi_image_samples("val", 12)), list(multi_image_samples("val", 12))
    assert [s.to_json() for s in first] == [s.to_json() for s in again]
    assert first[3].image_bytes == again[3].image_bytes
    assert {s.subtask for s in first} == set(TASKS)
    for sample in first:
        sample.validate()
    with pytest.raises(ValueError, match="style: seen 'long', expected one of grounded, reasoning, answer"):
        next(multi_image_samples("val", 1, "long"))


@pytest.mark.parametrize("style", ["grounded", "reasoning", "answer"])
def test_trajectories_earn_every_reward(style: str) -> None:
    encoder = TinyBackbone(
        pretrained=None, hidden_size=32, num_layers=1, vision_layers=1, codec="mirg", codec_grid="100"
    ).encoder
    for sample in multi_image_samples("val", 10, style):
        text, _ = encoder.render(sample)
        said = text.split(encoder.template.assistant)[1].removesuffix(encoder.template.end)
        completion = Completion(said, [1], True, read_completion(said, encoder.codec, sample))
        assert len(completion.objects) == 1
        assert format_reward(completion, sample) == (0 if style == "answer" else 1)
        assert image_reward(completion, sample) == 1
        assert object_reward(completion, sample) > 0.85
        assert said.count("<|box_start|>") == 1
        assert (said.index("<|box_start|>") < said.index("<answer>")) == (style == "grounded")


def test_the_question_shows_its_object() -> None:
    (sample,) = [s for s in multi_image_samples("val", 10) if s.subtask == "multi_view"]
    assert "{region:1}" in sample.turns[0].text
    assert sample.regions[1].image == 0
    assert area(sample, 0) == pytest.approx(area(sample, 1), rel=0.01)


def area(sample: Sample, index: int) -> float:
    box: Box = sample.regions[index].box
    return (box[2] - box[0]) * (box[3] - box[1])
