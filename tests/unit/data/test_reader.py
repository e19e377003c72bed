"""Writing and reading back: by our reader, by webdataset, in workers, and with damaged records.

Bitwise: whole numbers.
"""

import os
import pickle
from dataclasses import replace

import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from tests.unit.data_samples import encode, sample, shards
from ts_lightning.data import index_shards, reader
from ts_lightning.data.reader import ShardDataset, ShardReader, with_bytes
from ts_lightning.data.record import Questions
from ts_lightning.data.write import write_shards


def test_what_is_written_is_read(tmp_path):
    paths = shards(tmp_path, [3, 2])
    source = ShardReader(index_shards(paths))
    for i in range(5):
        assert source.read(i) == replace(sample(i), shard=str(paths[i // 3]))
    assert (len(source), [one.id for one in source]) == (5, [f"test/{i}" for i in range(5)])


def test_a_reader_outlives_its_module(tmp_path, monkeypatch):
    source = ShardReader(index_shards(shards(tmp_path, [1])))
    source.read(0)
    (opened,) = source._open.values()
    monkeypatch.setattr("ts_lightning.data.reader.os", None)  # as when the interpreter ends
    source.__del__()
    monkeypatch.undo()
    source._open.clear()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened)


@pytest.mark.parametrize(("images", "kind"), [(1, "JPEG"), (1, "PNG"), (1, "WEBP"), (11, "JPEG")])
def test_webdataset_reads_the_same_samples(tmp_path, monkeypatch, images, kind):
    monkeypatch.setattr("webdataset.utils.enforce_security", True)  # WDS_SECURE=1
    paths = write_shards((sample(i, images, kind) for i in range(5)), tmp_path, "x", maxcount=2)
    assert [p.name for p in paths] == ["x-000000.tar", "x-000001.tar", "x-000002.tar"]
    source = ShardReader(index_shards(paths))
    records = list(webdataset.WebDataset([str(p) for p in paths], shardshuffle=False))
    assert len(records) == 5
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    names = [extension] if images == 1 else [f"{i}.{extension}" for i in range(images)]
    for i, record in enumerate(records):
        ours = source.read(i)
        theirs = Questions(record["json"], record["__key__"], ours.shard, [record[name] for name in names])[0]
        assert ours == theirs


def test_shards_are_the_same_bytes_each_time_and_replace_older_ones(tmp_path):
    def write(count: int) -> list[bytes]:
        return [p.read_bytes() for p in write_shards((sample(i) for i in range(count)), tmp_path, "x", maxcount=2)]

    first = write(6)
    index_shards(f"{tmp_path}/x-*.tar")
    other = write_shards([sample(9)], tmp_path, "x-more")
    assert write(6) == first
    assert write(4) == first[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-000000.tar", "x-000001.tar", other[0].name]


def test_a_shard_holds_one_number_of_pictures(tmp_path):
    mixed = [sample(0), sample(1, images=2), sample(2), sample(3, kind="PNG"), sample(4, images=2)]
    manifest = index_shards(write_shards(mixed, tmp_path, "x"))
    assert [shard.question_keys() for shard in manifest.shards] == [
        ["k00000", "k00002"],
        ["k00001", "k00004"],
        ["k00003"],
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"key": "a.b"}, "seen the key 'a.b', expected letters"),
        ({"key": "../a"}, "seen the key '../a', expected letters"),
        ({"key": "k00000"}, "seen the key 'k00000' twice"),
        ({"image_bytes": []}, "seen 0 pictures, expected 1"),
        ({"image_bytes": [b"<html>"]}, "image: seen bytes b'<html>', expected a JPEG"),
        ({"task": ""}, "field task"),
    ],
)
def test_a_bad_sample_is_not_written(tmp_path, change, expected):
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        write_shards([sample(0), replace(sample(1), **change)], tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="seen no samples"):
        write_shards([], tmp_path, "x")


def test_a_changed_byte_is_found(tmp_path):
    path = shards(tmp_path, [2])[0]
    manifest = index_shards(path)
    _, offset, size, _ = manifest.shards[0].record(1)[0]
    with open(path, "r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    source = ShardReader(manifest)
    assert source.read(0).id == "test/0"
    with pytest.raises(ValueError, match=rf"^{path}:k00001: member jpg: seen checksum \w+, expected \w+"):
        source.read(1)


def test_files_are_opened_once_and_few_stay_open(tmp_path, monkeypatch):
    manifest = index_shards(shards(tmp_path, [1] * 6))
    assert all(len(shard.entries.keys) for shard in manifest.shards)  # mapped before files are counted
    source = ShardReader(manifest)
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 3)
    opened, real = [], os.open
    monkeypatch.setattr(reader.os, "open", lambda *args: opened.append(args[0]) or real(*args))
    before = len(os.listdir("/proc/self/fd"))
    for i in (0, 1, 0, 1, 0, 2, 3, 4, 5):
        assert source.read(i).id == f"test/{i}"
    assert len(opened) == 6
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del source
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore:.*worker processes in total.*")
def test_workers_read_with_their_own_files(tmp_path):
    dataset = ShardDataset(index_shards(shards(tmp_path, [3, 3])), encode)
    assert dataset[4]["sample"].id == "test/4"  # the parent's file is open before the fork
    loader = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    assert [rows[0]["sample"].id for rows in loader] == [f"test/{i}" for i in range(6)]
    assert pickle.loads(pickle.dumps(dataset))[5]["sample"].id == "test/5"


def test_rows_carry_no_bytes_and_bytes_come_back(tmp_path):
    dataset = ShardDataset(index_shards(shards(tmp_path, [2])), encode)
    row = dataset[1]
    assert row["sample"].image_bytes == []
    assert (row["row_valid"], row["bad"]) == (True, None)
    assert with_bytes(row["sample"]).image_bytes == sample(1).image_bytes


def test_a_bad_record_and_padding_become_masked_rows(tmp_path):
    broken = replace(sample(1), image_bytes=[sample(1).image_bytes[0] + b"broken"])
    path = write_shards([sample(0), broken, sample(2)], tmp_path, "x")[0]
    dataset = ShardDataset(index_shards(path), encode)
    bad, padding, other = dataset[1], dataset[-1], dataset[2]
    assert bad["bad"] == (f"{path}:k00001", "image: seen broken bytes, expected a JPEG")
    assert (bad["row_valid"], padding["row_valid"], padding["bad"]) == (False, False, None)
    assert torch.equal(bad["input_ids"], other["input_ids"])
    assert torch.equal(bad["step_ids"], torch.full_like(other["step_ids"], -1))
    assert torch.equal(padding["input_ids"], dataset[0]["input_ids"])


def test_where_nothing_can_be_read_the_row_is_the_reason_alone(tmp_path):
    broken = [replace(sample(i), image_bytes=[sample(i).image_bytes[0] + b"broken"]) for i in range(2)]
    path = write_shards(broken, tmp_path, "x")[0]
    assert ShardDataset(index_shards(path), encode)[0] == {
        "bad": (f"{path}:k00000", "image: seen broken bytes, expected a JPEG")
    }


def test_a_size_that_is_not_the_pictures_is_a_bad_record(tmp_path):
    wrong = replace(sample(0), images=[replace(sample(0).images[0], height=2)])
    path = write_shards([wrong], tmp_path, "x")[0]
    with pytest.raises(ValueError, match=rf"^{path}:k00000: field images\[0\]: seen 8 x 2, expected 8 x 6 as"):
        ShardReader(index_shards(path)).read(0)
