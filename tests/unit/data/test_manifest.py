"""A manifest file against the shards that are there, the index file of a stranger, and other readers of the list."""

import json
import os
from pathlib import Path

import pytest

from tests.reliability import damage
from tests.unit.data_samples import put, shards
from ts_lightning.cli import main
from ts_lightning.data import ShardSource, index_shards
from ts_lightning.data.index import check_manifest
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.sample import Sample


def command(*args: object) -> int:
    return main(["data", "index", *map(str, args)])


def test_a_replaced_shard_is_named_although_size_and_time_are_the_same(tmp_path, monkeypatch, capsys):
    paths, other = shards(tmp_path, [2, 2]), shards(tmp_path / "other", [2, 2], start=4)
    out, pattern = tmp_path / "m.json", f"{tmp_path}/*.tar"
    assert command(pattern, "--out", out) == 0
    assert command(pattern, "--check", out) == 0
    stat, data = paths[1].stat(), other[1].read_bytes()
    assert len(data) == stat.st_size
    paths[1].write_bytes(data)
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    assert command(pattern, "--check", out) == 2
    assert capsys.readouterr().err.startswith(f"ts-lightning: error: {paths[1]}: seen sha256 ")
    paths[1].unlink()
    assert command(pattern, "--check", out) == 2
    assert (
        capsys.readouterr().err
        == f"ts-lightning: error: {paths[1].name}: seen no such shard, expected it as in {out}\n"
    )


def test_shards_of_one_name_in_two_folders(tmp_path):
    pattern = [f"{tmp_path}/a/*.tar", f"{tmp_path}/b/*.tar"]
    a, b = shards(tmp_path / "a", [2])[0], shards(tmp_path / "b", [2], start=5)[0]
    path = put(tmp_path / "m.json", index_shards(pattern).summary())
    check_manifest(index_shards(pattern), path)
    b.write_bytes(a.read_bytes())
    with pytest.raises(ValueError, match=f"^{b}: seen sha256"):
        check_manifest(index_shards(pattern), path)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": 1}', '{"shards": [{"path": "x"}]}', "[" * 100_000])
def test_a_broken_manifest_is_refused(text, tmp_path):
    shards(tmp_path, [1])
    path = put(tmp_path / "m.json", text)
    with pytest.raises(ValueError, match=f"^{path}: seen no list of shards .*expected a manifest") as error:
        check_manifest(index_shards(f"{tmp_path}/*.tar"), path)
    assert "\n" not in str(error.value)


def test_replaced_shards_and_wrong_keys_by_the_dozen(tmp_path):
    assert damage.replaced(tmp_path / "a") == 12
    assert damage.keys(tmp_path / "b") == 84


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i["members"].__setitem__(0, [0, 1 << 61, 0]),
        lambda i: i["members"].__setitem__(0, [-5, 3, 0]),
        lambda i: i["members"].__setitem__(0, [1 << 70, 3, 0]),
        lambda i: i["keys"].append("more"),
        lambda i: i["starts"].__setitem__(1, 4),
        lambda i: i["starts"].clear(),
        lambda i: i.update(bad=[1]),
        lambda i: i.update(sha256=["a"]),
        lambda i: i.update(starts=[float(s) for s in i["starts"]]),
        lambda i: i.update(keys=[["k00000"], ["k00001"]]),
        lambda i: i.update(tags=[1, 2]),
        lambda i: i.update(keys=["k00000"] * 2, members=i["members"][:2] * 2),
        lambda i: i.update(
            {name: i[name][:1] for name in ("keys", "tags")},
            starts=[0, 2],
            names=i["names"][:2],
            members=i["members"][:2],
        ),
    ],
)
def test_a_strangers_index_file_is_made_anew(change, tmp_path):
    path = shards(tmp_path, [2])[0]
    first = index_shards(path)
    beside = Path(f"{path}.idx")
    stored = json.loads(beside.read_text())
    change(stored)
    beside.write_text(json.dumps(stored))
    again = index_shards(path)
    assert [again.shards[0].record(r) for r in range(2)] == [first.shards[0].record(r) for r in range(2)]
    assert ShardReader(again).read(1).id == "test/1"


def test_an_index_that_hides_the_json_names_the_record(tmp_path):
    path = shards(tmp_path, [2])[0]
    index_shards(path)
    beside = Path(f"{path}.idx")
    stored = json.loads(beside.read_text())
    stored["names"] = ["jpg"] * 4
    beside.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=f"^{path}:k00001: seen 'k00001.json' of .* expected 'k00001.jpg'"):
        ShardReader(index_shards(path)).read(1)


def test_an_index_whose_keys_are_not_the_tars_is_named_when_it_is_read(tmp_path):
    path = shards(tmp_path, [3])[0]
    index_shards(path)
    beside = Path(f"{path}.idx")
    stored = json.loads(beside.read_text())
    beside.write_text(json.dumps(stored | {"keys": stored["keys"][::-1]}))
    reader = ShardReader(index_shards(path))
    with pytest.raises(
        ValueError, match=f"^{path}:k00002: seen 'k00000.jpg' of .*expected 'k00002.jpg'.*remove the .idx"
    ):
        reader.read(0)


def test_with_a_manifest_the_index_beside_is_compared_with_the_bytes(tmp_path):
    path = shards(tmp_path, [2])[0]
    out = put(tmp_path / "m.json", index_shards(path).summary())
    beside = Path(f"{path}.idx")
    stored = json.loads(beside.read_text())
    beside.write_text(json.dumps(stored | {"tags": ["negative", ""]}))
    with pytest.raises(
        ValueError, match=f"^{path}.idx: seen other entries than in the tar, expected .*remove this file"
    ):
        ShardSource(str(path), manifest=str(out)).load()
    beside.unlink()
    assert ShardSource(str(path), manifest=str(out)).load().num_samples == 2


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_no_pipe_or_device_is_waited_for(kind, tmp_path):
    path, odd = shards(tmp_path, [1])[0], tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(kind)
    with pytest.raises(ValueError, match=f"^{odd}: seen a folder, pipe or device, expected at least one .tar file$"):
        index_shards(odd)
    with pytest.raises(ValueError, match=f"^{odd}: seen a folder, pipe or device, expected a regular file$"):
        check_manifest(index_shards(path), odd)
    beside = Path(f"{path}.idx")
    beside.unlink()
    odd.rename(beside)
    assert index_shards(path).num_samples == 1
    assert not beside.is_file()


def test_wids_reads_the_same_samples(tmp_path, monkeypatch):
    wids = pytest.importorskip("wids")  # of the `test` extra
    shards(tmp_path, [2, 1, 3])
    out = tmp_path / "manifest.json"
    assert command(f"{tmp_path}/*.tar", "--out", out) == 0
    reader = ShardReader(index_shards(f"{tmp_path}/*.tar"))
    ours = [reader.read(i) for i in range(6)]
    theirs = wids.ShardListDataset(str(out), cache_dir=str(tmp_path / "cache"), keep=True, transformations=[])
    assert len(theirs) == 6
    for i in (5, 0, 3, 1, 2, 4):
        record = theirs[i]
        assert record["__key__"] == ours[i].key
        assert record[".jpg"].getvalue() == ours[i].image_bytes[0]
        assert Sample.from_json(record[".json"].read(), ours[i].key).to_json() == ours[i].to_json()
