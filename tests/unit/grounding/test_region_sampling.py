"""Clicks, polygons and noisy boxes; box noise in the loader."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from tests.unit.data_samples import picture
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.data.noise import NoisyBoxes
from ts_lightning.data.sample import Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards
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
    noisy = NoisyBoxes(0.3)
    moved = noisy(sample)
    assert moved.regions[0].box != regions[0].box
    assert moved.regions[1].box == regions[1].box
    assert noisy(sample) == moved
    assert NoisyBoxes(0.3, seed=1)(sample) != moved
    assert noisy(sample, visit=1) == noisy(sample, visit=1) != moved
    assert sample.regions[0].box == (0.2, 0.2, 0.6, 0.6)


def pointed(name: str) -> Sample:
    turns = [Turn("user", "<image>\nWhat is in {region:0}?"), Turn("assistant", "a dog")]
    regions = [SampleRegion(box=(0.2, 0.2, 0.6, 0.6))]
    image = SampleImage("a.jpg", 8, 6)
    return Sample(name, key=name, images=[image], turns=turns, regions=regions, image_bytes=[picture()])


def edge(sample: Sample, for_generation: bool = False) -> dict:
    """A row of one number: the left edge of the box that is asked about."""
    ids, steps = torch.tensor([round(sample.regions[0].box[0] * 1e6)]), torch.tensor([0])
    pixels = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return {"input_ids": ids, "step_ids": steps, "pixel_values": pixels, "task": 1, "sample": sample}


@pytest.mark.parametrize("mixed", [False, True])
def test_training_draws_noise_anew_each_epoch_and_resumes_exactly(tmp_path: Path, mixed: bool) -> None:
    for name in "ab":
        write_shards((pointed(f"{name}{i}") for i in range(4)), tmp_path, name)

    def module() -> ShardDataModule:
        one, two = (ShardSource(f"{tmp_path}/{name}-*.tar", box_noise=0.3) for name in "ab")
        sources = {"mix": {"one": one, "two": two}} if mixed else {"train": ShardSource(one.shards, box_noise=0.3)}
        sizes = {"global_batch_size": 2, "micro_batch_size": 2, "eval_batch_size": 4}
        data = ShardDataModule(**sources, val={"same": one}, encode=edge, pad_id=0, **sizes)
        data.setup()
        return data

    def run(data: ShardDataModule, epochs: int) -> list[tuple[str, int]]:
        seen = []
        for _ in range(epochs):
            for batch in data.train_dataloader():
                (micro,) = batch["micro_batches"]
                seen += zip(batch["ids"], micro["input_ids"][:, 0].tolist(), strict=True)
                data.advance()
        return seen

    data = module()
    first, rest = run(data, 1), run(data, 2)
    seen = first + rest
    assert max(Counter(name for name, _ in seen).values()) > 2
    assert len(set(seen)) == len(seen)  # another draw on every visit
    evaluated = [
        (sample.id, edge)
        for batch in data.val_dataloader()[0]
        for sample, edge in zip(batch["samples"], batch["input_ids"][:, 0].tolist(), strict=True)
    ]
    assert set(evaluated) <= set(seen)  # as on the first visit
    again = module()
    run(again, 1)
    resumed = module()
    resumed.load_state_dict(again.state_dict())
    assert run(resumed, 2) == rest


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
