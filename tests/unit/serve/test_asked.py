"""What may be asked: every number, list and depth is checked before it is used."""

import json

import pytest

from ts_lightning.serve.asked import read_asked

GOOD = {"images": ["a"], "regions": [{"image": 0, "points": [[0, 0.5], [1, 1]]}], "texts": ["What?"], "task": "auto"}
TASKS = ("auto", "understanding", "counting")


def test_a_question_is_read() -> None:
    asked = read_asked(json.dumps(GOOD).encode(), TASKS)
    assert (asked.images, asked.texts, asked.task) == (["a"], ["What?"], "auto")
    ((image, region),) = asked.regions
    assert (image, region.points) == (0, ((0.0, 0.5), (1.0, 1.0)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "seen no JSON"),
        (b"\xff", "seen no JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"1" * 5_000, "seen no JSON|digits"),
        (b"[]", "seen list, expected an object"),
        (b"{}", "texts: seen NoneType"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_question_is_one_line(body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_asked(body, TASKS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"regions": [{"image": 1e999, "points": [[0, 0]]}]', "region #1: image: seen inf"),
        ('"regions": [{"image": true, "points": [[0, 0]]}]', "image: seen True"),
        ('"regions": [{"image": -1, "points": [[0, 0]]}]', "image: seen -1"),
        ('"regions": [{"image": 0, "points": [[0, %s]]}]' % ("9" * 400), r"points: seen \[0, 9999"),
        ('"regions": [{"image": 0, "points": [[0, NaN]]}]', "expected pairs of numbers"),
        ('"regions": [{"image": 0, "points": [[0, 1e999]]}]', "expected pairs of numbers"),
        ('"regions": [{"image": 0, "points": [[0, "1"]]}]', "expected pairs of numbers"),
        ('"regions": [{"image": 0, "points": [%s]}]' % ("[" * 900 + "]" * 900), "expected pairs|too deep"),
        ('"regions": [{"image": 0, "points": []}]', "expected at least 1"),
        ('"regions": [{"image": 0, "points": %s}]' % ([[0, 0]] * 257), "points: seen 257, expected at most 256"),
        (f'"regions": {json.dumps(GOOD["regions"] * 65)}', "regions: seen 65, expected at most 64"),
        ('"regions": null', "regions: seen NoneType, expected a list"),
        ('"images": [1]', "seen int, expected text"),
        ('"texts": ["  "]', "question: seen nothing"),
        ('"texts": ["a", "b"]', "question: seen nothing"),
        ('"texts": ["\\ud800"]', "half a character"),
        ('"texts": ["%s"]' % ("x" * 5000), "seen 5000 characters"),
        ('"texts": ["%s", "b", "c"]' % ("x" * 33_000), "conversation: seen 33002 characters"),
        ('"task": "grounding"', "seen 'grounding', expected one of auto, understanding, counting"),
        ('"task": ["auto"]', "task: seen"),
        ('"constrain": 1', "constrain: seen '1', expected true or false"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_are_named(change: str, said: str) -> None:
    body = json.dumps(GOOD)[:-1] + ", " + change + "}"
    with pytest.raises(ValueError, match=said) as caught:
        read_asked(body.encode(), TASKS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
