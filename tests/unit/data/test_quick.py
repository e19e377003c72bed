"""The quick look takes nothing that the readable checks refuse, and takes what converters write."""

import json
import random

import pytest

from tests.reliability.fuzz import _hostile
from tests.unit.data.test_record import stored, three
from tests.unit.data_samples import sample
from ts_lightning.data.quick import quick_look
from ts_lightning.data.record import Questions


def slow(data: bytes) -> tuple[int, list[str]] | None:
    """The same of the readable checks; None where any question is wrong."""
    try:
        questions = Questions(data, "k")
        samples = [questions[j] for j in range(len(questions))]
    except ValueError:
        return None
    return len(samples[0].images), ["\t".join(one.tags) for one in samples]


def test_right_records_are_taken_at_once():
    for data in (sample(3, images=2).to_json(), json.dumps(stored(three()[:1])).encode()):
        assert quick_look(data) == slow(data) is not None
    text = sample(0, images=0)
    text.regions, text.answer, text.turns[1].text, text.turns[1].steps, text.meta = [], None, "Ja, grün.", None, None
    assert quick_look(text.to_json()) == (0, ["cot"])


def test_points_and_deep_meta_are_left_to_the_readable_checks():
    assert quick_look(json.dumps(stored(three())).encode()) is None  # a point is named
    deep = json.loads(sample(0).to_json()) | {"meta": {"a": [[[[]]]] * 20}}
    assert quick_look(json.dumps(deep).encode()) is None
    assert slow(json.dumps(deep).encode()) == (1, ["cot"])


VALUES = [
    None,
    True,
    0,
    1,
    -1,
    2,
    1.0,
    0.5,
    "",
    "a",
    [],
    {},
    [0],
    [1],
    ["a"],
    "<image>",
    "{region:0}",
    "{region:7}",
    [[0, 2]],
]


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_readable_checks_refuse_is_not_taken(version):
    rng, taken, refused = random.Random(0), 0, 0
    for _ in range(700):
        record = json.loads(sample(1).to_json()) if version == 1 else stored(three()[::2])
        spot = record
        while True:
            key = rng.choice(list(spot) if isinstance(spot, dict) else range(len(spot)))
            if not (isinstance(spot[key], dict | list) and spot[key] and rng.random() < 0.9):
                break
            spot = spot[key]
        if rng.random() < 0.1 and isinstance(spot, dict):
            spot.pop(key)
        else:
            spot[key] = _hostile(rng) if rng.random() < 0.02 else rng.choice(VALUES)
        data = json.dumps(record).encode()
        if rng.random() < 0.1:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        if (found := quick_look(data)) is not None:
            assert found == slow(data), data[:2000]
            taken += 1
        else:
            refused += slow(data) is None
    assert taken > 20
    assert refused > 200
