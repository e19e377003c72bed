"""Schema 2: several questions about the same pictures in one record, and every check of its own fields."""

import json
from dataclasses import replace

import pytest

from tests.unit.data_samples import sample
from ts_lightning.data import index_shards, record
from ts_lightning.data.record import Questions, split_key
from ts_lightning.data.sample import Answer, Sample, SampleRegion, Turn


def three() -> list[Sample]:
    """Three questions about one picture: two share a region, the last has none."""
    one = sample(0)
    two = replace(sample(1), images=one.images, image_bytes=one.image_bytes, tags=["negative"])
    two.regions = [SampleRegion(phrase="other", points=[(0.5, 0.5)]), *two.regions]
    two.turns = [Turn("user", "<image>And {region:1}?"), Turn("assistant", "{region:0}")]
    last = replace(sample(2), images=one.images, image_bytes=one.image_bytes, regions=[], answer=Answer("red"))
    last.turns = [Turn("user", "<image>What color?"), Turn("assistant", "red")]
    return [one, two, last]


def stored(samples: list[Sample]) -> dict:
    return json.loads(record.to_json([json.loads(one.to_json()) for one in samples]))


def test_questions_come_back_as_they_were():
    samples = three()
    questions = Questions(json.dumps(stored(samples)), "k", "x.tar", samples[0].image_bytes)
    assert len(questions) == 3
    assert [questions[j] for j in range(3)] == [
        replace(one, key=f"k#{j}", shard="x.tar") for j, one in enumerate(samples)
    ]


def test_a_region_of_two_questions_is_stored_once():
    written = stored(three())
    assert list(written) == ["version", "source", "images", "regions", "questions"]
    assert [region["phrase"] for region in written["regions"]] == ["it", "other"]
    assert [question["regions"] for question in written["questions"]] == [[0], [1, 0], []]
    assert list(written["questions"][0]) == [
        *("id", "task", "subtask", "tags", "regions", "turns", "answer", "answers", "choices", "meta")
    ]


def test_one_question_keeps_the_records_key_and_version_1_is_one_question():
    one = sample(0)
    for text in (json.dumps(stored([one])), one.to_json()):
        questions = Questions(text, one.key, "", one.image_bytes)
        assert len(questions) == 1
        assert questions[0] == one
    assert split_key("k00000") == ("k00000", 0)
    assert split_key("k#12") == ("k", 12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.update(version=3), "x.tar:k: field version: seen 3, expected 2"),
        (lambda r: r.update(extra=1), "x.tar:k: field record: seen a missing or unknown 'extra', expected version"),
        (lambda r: r.pop("images"), "x.tar:k: field record: seen a missing or unknown 'images'"),
        (lambda r: r.update(questions=[]), "x.tar:k: field questions: seen none, expected at least one"),
        (lambda r: r.update(questions={"a": 1}), "x.tar:k: field questions: seen no list of at most 1000"),
        (lambda r: r.update(questions=r["questions"] * 400), "x.tar:k: field questions: seen no list of at most 1000"),
        (lambda r: r.update(regions=None), "x.tar:k: field regions: seen no list"),
        (
            lambda r: r["questions"][1].update(regions=[0] * 20_001),
            "x.tar:k: field questions: seen 20002 regions in all",
        ),
        (
            lambda r: r["questions"][1].update(regions=[2]),
            "x.tar:k#1: field questions[1].regions: seen 2, expected below 2",
        ),
        (lambda r: r["questions"][1].update(regions=[True]), "x.tar:k#1: field questions[1].regions: seen True"),
        (lambda r: r["questions"][1].update(regions=None), "x.tar:k#1: field questions[1].regions: seen no list"),
        (lambda r: r["questions"][1].pop("answer"), "x.tar:k#1: field questions[1]: seen other fields, expected id"),
        (lambda r: r["questions"].__setitem__(1, []), "x.tar:k#1: field questions[1]: seen other fields"),
        (lambda r: r["questions"][1].update(task=""), "x.tar:k#1: field task: seen '', expected a non-empty string"),
        (lambda r: r["regions"][1].update(points=[[2, 2]]), "x.tar:k#1: field regions[0].points: seen [2, 2]"),
    ],
)
def test_what_is_wrong_is_named(change, expected):
    written = stored(three())
    change(written)
    with pytest.raises(ValueError) as error:
        Questions(json.dumps(written), "k", "x.tar")[1]
    assert str(error.value).startswith(expected)


def test_a_bad_question_leaves_the_others(tmp_path):
    from tests.unit.data.test_index import write_tar

    written, one = stored(three()), sample(0)
    written["questions"][1]["answer"] = 7
    path = write_tar(tmp_path / "x.tar", [("k.jpg", one.image_bytes[0]), ("k.json", json.dumps(written).encode())])
    manifest = index_shards(path)
    assert manifest.num_samples == 3
    assert manifest.bad == [(f"{path}:k#1", "field answer: seen 7, expected an object")]
