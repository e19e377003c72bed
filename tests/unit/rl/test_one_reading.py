"""A reward is what evaluation computes: over 10,000 random completions in every notation."""

import random as randomness

import pytest

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.grounding.boxes import Box
from ts_lightning.grounding.codecs import CODECS, Codec, backbone_codec
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.rl.completion import Completion, read_completion
from ts_lightning.rl.rewards import image_reward, object_reward
from ts_lightning.training.records import record_of

SIZES = [(640, 480), (300, 500), (90, 60)]
FRAMES = [
    "<think>{0}</think><answer>{1}</answer>",
    "{0} {1}",
    "<answer>{1}",
    "<answer>{0}</answer><answer>{1}</answer>",
]
FRAMES += ["Step 1: {0}. Step 2: So the answer is {1}.", "<think>{0} {1}", "<think>{0}</think>{1}", "{1}</answer>{0}"]


def half(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


def said(random: randomness.Random, codec: Codec, true: Box, images: int) -> str:
    """A box near the true one, on a picture that may be wrong or not there; or none, or nonsense."""
    stated = random.randrange(images + 1)
    x1, y1, x2, y2 = (min(1.0, max(0.0, v + random.gauss(0, 0.05))) for v in true)
    if random.random() < 0.2 or x1 >= x2 or y1 >= y2:
        return random.choice(["", "nothing", "[[9,9,1,1]]", "(1,2),(3,4),(5,6)", "<bbox_id>[1-1]</bbox_id>"])
    words = random.choice(["", f"Image-{stated + 1}: ", "In the second image ", "\n"])
    first = random.random() < 0.8
    return words + codec.reference([(x1, y1, x2, y2)], SIZES[min(stated, 2)], stated, 1, "cup", first)


@pytest.mark.parametrize("name", sorted(name for name, codec in CODECS.items() if "box" in codec.kinds))
def test_rewards_are_what_evaluation_computes(name: str) -> None:
    random = randomness.Random(name)
    codec, protocol = backbone_codec(name, None, half), make_protocol("mig")
    earned = []
    for number in range(10_000 // len(CODECS) + 1):
        images = random.choice([1, 3])
        image = random.randrange(images)
        x, y = random.uniform(0, 0.5), random.uniform(0, 0.5)
        true = (x, y, x + 0.3, y + 0.3)
        sample = Sample(
            id="s",
            key=f"{number}",
            task="grounding",
            subtask="refer",
            images=[SampleImage(f"{i}.jpg", *SIZES[i]) for i in range(images)],
            turns=[Turn("user", "<image>" * images), Turn("assistant", "{region:0}")],
            regions=[SampleRegion(image=image, box=true)],
            answer=Answer(None, [0]),
        )

        parts = [said(random, codec, true, images) for _ in range(random.choice([2, 2, 3]))]
        text = random.choice(FRAMES).format(parts[0], " and ".join(parts[1:]))
        completion = Completion(text, [1], True, read_completion(text, codec, sample))
        (row,) = protocol.rows_of([record_of(sample, text, codec, "mig")])
        earned.append(object_reward(completion, sample))
        assert earned[-1] == row["iou"], text
        stated_image = row["image"] if completion.objects else None
        assert image_reward(completion, sample) == float(stated_image == image), text
    assert sum(value > 0.5 for value in earned) > len(earned) / 10
    assert sum(value == 0 for value in earned) > len(earned) / 10
