"""Samples about the same pictures become one record, wherever they come; and rows of a record's questions."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data_samples import encode, sample
from ts_lightning.data import ShardDataModule, ShardSource, index_shards
from ts_lightning.data.reader import ShardReader, with_bytes
from ts_lightning.data.sample import Sample
from ts_lightning.data.write import write_shards

SHARED = [0, 1, 0, 2, 1, 0, 0, 3]  # question n is about picture SHARED[n]


def about(number: int, picture: int, **more: object) -> Sample:
    other = sample(picture)
    return replace(sample(number), images=other.images, image_bytes=other.image_bytes, **more)


def written(folder: Path, pictures: list[int] = SHARED, **options: int) -> list[Path]:
    return write_shards((about(n, p) for n, p in enumerate(pictures)), folder, "x", **options)


def ids(paths: object) -> list[str]:
    reader = ShardReader(index_shards(paths))
    return [reader.read(i).id for i in range(reader.manifest.num_samples)]


def test_questions_of_a_picture_are_one_record_in_the_order_of_its_first(tmp_path):
    (path,) = written(tmp_path)
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"k0000{n}.{kind}" for n in (0, 1, 3, 7) for kind in ("jpg", "json")]
    assert ids(path) == [f"test/{n}" for n in (0, 2, 5, 6, 1, 4, 3, 7)]
    shard = index_shards(path).shards[0]
    assert shard.question_keys() == [
        "k00000#0",
        "k00000#1",
        "k00000#2",
        "k00000#3",
        "k00001#0",
        "k00001#1",
        "k00003",
        "k00007",
    ]
    for q, key in enumerate(shard.question_keys()):
        assert shard.find(key) == q
        one = ShardReader(index_shards(path)).read(q)
        assert one.key == key
        assert with_bytes(one.without_bytes()) == one
    with pytest.raises(KeyError):
        shard.find("k00001#2")


def test_other_names_sizes_or_sources_are_other_records(tmp_path):
    one = sample(0)
    samples = [one, about(1, 0, source="else"), replace(sample(2), image_bytes=one.image_bytes), about(3, 0)]
    texts = [replace(sample(n, images=0), regions=[], answer=None, turns=sample(8, images=0).turns) for n in (4, 5)]
    for text in texts:
        text.turns[1].text, text.turns[1].steps = "There.", None
    (path, other) = write_shards(samples + texts, tmp_path, "x")
    assert index_shards(path).shards[0].num_records == 3
    assert index_shards(other).shards[0].num_records == 2  # what is about no picture shares none


def test_a_record_takes_so_many_questions_and_a_shard_counts_questions(tmp_path):
    (path,) = written(tmp_path / "a", [0] * 150)
    shard = index_shards(path).shards[0]
    assert (shard.num_records, shard.num_questions) == (3, 150)
    assert ids(path) == [f"test/{n}" for n in range(150)]
    paths = written(tmp_path / "b", [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3], maxcount=4)
    assert [index_shards(p).num_samples for p in paths] == [3, 3, 5]


def test_what_was_read_is_written_again_byte_for_byte(tmp_path):
    (path,) = written(tmp_path / "a")
    reader = ShardReader(index_shards(path))
    (again,) = write_shards((reader.read(i) for i in range(8)), tmp_path / "b", "x")
    assert again.read_bytes() == path.read_bytes()
    part = write_shards((reader.read(i) for i in (5, 2)), tmp_path / "c", "x")
    assert index_shards(part).shards[0].question_keys() == ["k00001", "k00000"]
    about_it = [replace(reader.read(i), key=f"{reader.read(i).key}-gic") for i in (1, 2, 6)]
    keys = index_shards(write_shards(about_it, tmp_path / "d", "x")).shards[0].question_keys()
    assert keys == ["k00000-1-gic#0", "k00000-1-gic#1", "k00003-gic"]


def test_rows_are_questions_of_one_record(tmp_path):
    paths = written(tmp_path, SHARED, maxcount=6)
    whole = index_shards(paths)
    assert whole.num_rows == whole.num_samples == 8
    for per_row, sizes, rows in (
        (8, [2, 2], [[0, 2, 5, 6], [1, 4], [3], [7]]),
        (3, [3, 2], [[0, 2, 5], [6], [1, 4], [3], [7]]),
        (2, [3, 2], [[0, 2], [5, 6], [1, 4], [3], [7]]),
        (1, [6, 2], [[0], [2], [5], [6], [1], [4], [3], [7]]),
    ):
        manifest = whole.in_rows(per_row)
        reader = ShardReader(manifest)
        assert manifest.shard_sizes == sizes
        read = [reader.read_row(i) for i in range(manifest.num_rows)]
        assert [[one.id for one in row] for row in read] == [[f"test/{n}" for n in row] for row in rows]
        assert all(one.image_bytes[0] is row[0].image_bytes[0] for row in read for one in row)
    assert len({whole.in_rows(k).sha256 for k in (1, 2, 8)}) == 3
    assert whole.in_rows(1).sha256 == whole.sha256


def test_tags_and_counts_choose_questions_not_records(tmp_path):
    tags = [["a"], ["b"], [], ["a"], ["a"], ["b"], ["a"], ["a"]]
    (path,) = write_shards((about(n, p, tags=tags[n]) for n, p in enumerate(SHARED)), tmp_path, "x")

    def chosen(per_row: int = 1, **options: object) -> list[list[str]]:
        manifest = ShardSource(str(path), **options).load().in_rows(per_row)
        reader = ShardReader(manifest)
        return [[one.id[5:] for one in reader.read_row(i)] for i in range(manifest.num_rows)]

    assert chosen(include_tags=["a"]) == [["0"], ["6"], ["4"], ["3"], ["7"]]
    assert chosen(8, include_tags=["a"]) == [["0", "6"], ["4"], ["3"], ["7"]]
    assert chosen(8, exclude_tags=["a"], max_samples=2) == [["2", "5"]]
    assert chosen(8, max_samples=5) == [["0", "2", "5", "6"], ["1"]]
    assert ShardSource(str(path), include_tags=["a"]).load().num_samples == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_every_question_comes_once_an_epoch_and_counts_in_the_batch(tmp_path, workers):
    written(tmp_path, SHARED, maxcount=6)
    data = ShardDataModule(
        ShardSource(f"{tmp_path}/*.tar"), global_batch_size=4, micro_batch_size=2, encode=encode, pad_id=0,
        num_workers=workers,
    )  # fmt: skip
    data.setup("fit")
    batches = [batch["ids"] for batch in data.train_dataloader()]
    assert [len(batch) for batch in batches] == [4, 4]
    assert sorted(i for batch in batches for i in batch) == [f"test/{n}" for n in range(8)]


def test_version_1_is_read_and_becomes_version_2(tmp_path):
    from tests.unit.data.test_index import write_tar

    old = write_tar(
        tmp_path / "old.tar",
        [
            (f"k{n:05d}.{kind}", data)
            for n, p in enumerate(SHARED)
            for kind, data in (("jpg", about(n, p).image_bytes[0]), ("json", about(n, p).to_json()))
        ],
    )
    assert ids(old) == [f"test/{n}" for n in range(8)]
    reader = ShardReader(index_shards(old))
    (new,) = write_shards((reader.read(i) for i in range(8)), tmp_path, "x")
    assert new.read_bytes() == written(tmp_path / "direct")[0].read_bytes()
    with tarfile.open(new) as tar:
        assert json.loads(tar.extractfile("k00000.json").read())["version"] == 2
