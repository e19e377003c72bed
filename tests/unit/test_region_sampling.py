"""Clicks, polygons and noisy boxes; box noise in the loader."""

from random import Random

import pytest

from ts_lightning.data.noise import NoisyBoxes
from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.region_sampling import click_in, contains, noisy_box, polygon_around
from ts_lightning.pipelines.toy_world.regions import KINDS, TURNS, conversation, outline, point_at, region_questions
from ts_lightning.pipelines.toy_world.scene import sample_scene

TRIANGLE = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]


def test_clicks_lie_inside_and_spread() -> None:
    clicks = [click_in(TRIANGLE, Random(i)).points[0] for i in range(500)]
    assert all(x + y <= 1 for x, y in clicks)
    assert sum(x for x, _ in clicks) / 500 == pytest.approx(1 / 3, abs=0.03)  # the centroid of the triangle


def test_contains_counts_crossings() -> None:
    assert contains(TRIANGLE, (0.2, 0.2))
    assert not contains(TRIANGLE, (0.6, 0.6))
    assert not contains(TRIANGLE, (-0.1, 0.5))


def test_polygons_cover_the_object() -> None:
    for i in range(200):
        points = list(polygon_around((0.3, 0.4, 0.5, 0.8), Random(i)).points)
        assert 4 <= len(points) <= 7
        assert contains(points, (0.4, 0.6))
        assert all(0.27 <= x <= 0.53 and 0.34 <= y <= 0.86 for x, y in points)


def test_box_noise_is_bounded_by_its_scale_and_clipped() -> None:
    for i in range(500):
        box = noisy_box((0.2, 0.4, 0.6, 0.5), 0.3, Random(i))
        for moved, edge, side in zip(box, (0.2, 0.4, 0.6, 0.5), (0.4, 0.1) * 2, strict=True):
            assert abs(moved - edge) <= 0.3 * side + 1e-12
        assert box[0] < box[2]
        x1, _, x2, _ = noisy_box((0.0, 0.0, 1.0, 1.0), 0.3, Random(i))
        assert 0 <= x1 < x2 <= 1
    assert noisy_box((0.2, 0.4, 0.6, 0.5), 0.0, Random(0)) == (0.2, 0.4, 0.6, 0.5)
    with pytest.raises(ValueError, match=r"box noise: seen scale 0\.5"):
        noisy_box((0, 0, 1, 1), 0.5, Random(0))


def test_noise_moves_boxes_of_questions_alone_and_is_the_same_again() -> None:
    regions = [SampleRegion(box=(0.2, 0.2, 0.6, 0.6)) for _ in range(2)]
    turns = [Turn("user", "<image>\nWhat is in {region:0}?"), Turn("assistant", "a dog {region:1}")]
    sample = Sample("7", images=[SampleImage("a.jpg", 10, 10)], turns=turns, regions=regions)
    noisy = NoisyBoxes(lambda sample, for_generation: {"sample": sample}, 0.3)
    moved = noisy(sample)["sample"]
    assert moved.regions[0].box != regions[0].box
    assert moved.regions[1].box == regions[1].box
    assert noisy.moved(sample) == moved
    assert NoisyBoxes(noisy.encode, 0.3, seed=1).moved(sample) != moved
    assert sample.regions[0].box == (0.2, 0.2, 0.6, 0.6)


def test_toy_regions_point_at_their_object() -> None:
    for seed in range(60):
        scene, random = sample_scene(seed), Random(seed)
        thing = random.choice(scene.things)
        (point,) = point_at(scene, thing, "click", random).points or [(9, 9)]
        assert contains(outline(scene, thing), point)
        assert point_at(scene, thing, "box", random).box == scene.box(thing)
        assert contains(point_at(scene, thing, "polygon", random).polygon or [], scene.center(thing))


def test_questions_go_through_every_kind_and_conversations_have_all_turns() -> None:
    samples = list(region_questions(9))
    assert len({sample.subtask for sample in samples}) == 9
    for sample in samples:
        sample.validate()
        assert sample.answers in ([sample.turns[1].text], sample.answers)
    tags = {tag for sample in samples for tag in sample.tags}
    assert set(KINDS) <= tags
    talk = conversation(sample_scene(3), Random(3))
    talk.validate()
    assert len(talk.turns) == 2 * TURNS
