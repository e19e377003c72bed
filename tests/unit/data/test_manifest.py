"""A manifest file against the shards that are there, the index file of a stranger, and other readers of the list."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.reliability import damage
from tests.unit.data_samples import put, shards
from ts_lightning.cli import main
from ts_lightning.data import ShardSource, index, index_shards
from ts_lightning.data.index import same_entries, stored_arrays
from ts_lightning.data.manifest import check_manifest
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.record import Questions


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


def plant(path: Path, facts: dict | None = None, **arrays: object) -> None:
    """A stranger's index file beside a tar: the tar's own with other facts or arrays."""
    real = index.index_tar(str(path))
    columns = index._map(real)._asdict() | arrays
    stored = [index._padded(np.asarray(c, d).tobytes()) for c, d in zip(columns.values(), index._TYPES, strict=True)]
    line = json.dumps(index._facts(real) | (facts or {}), separators=(",", ":")).encode()
    Path(f"{path}.new").write_bytes(line + b" " * (-(len(line) + 1) % 64) + b"\n" + b"".join(stored))
    Path(f"{path}.new").replace(f"{path}.idx")
    index._entries.cache_clear()  # another process


TWO_QUESTIONS = {"facts": {"num_questions": 3}, "questions": [0, 1, 3], "tags": [0] * 3}
PLANTED: list[dict] = [
    *({"offsets": offsets} for offsets in ([0, 1, 2, 3], [-5] * 4, [1 << 61] * 4, [512] * 4)),
    *({"sizes": sizes} for sizes in ([1 << 61] * 4, [-1] * 4)),
    *({"starts": starts} for starts in ([0, 4, 4], [0, 2, 3], [1, 2, 4])),
    *({"questions": questions} for questions in ([0, 0, 2], [0, 5, 2])),
    *({"tags": [9, 9]}, {"extensions": [7] * 4}, {"key_ends": [0, 12, 6]}),
    *({"facts": {"sha256": ["a"]}}, {"facts": {"num_records": 2.0}}, {"facts": {"tag_sets": [1]}}),
    *({"facts": {"bad": [1]}}, {"facts": {"bad": {"0": 1}}}, {"facts": {"num_members": 1 << 40}}),
]


@pytest.mark.parametrize("change", PLANTED, ids=str)
def test_a_strangers_index_file_is_made_anew(change, tmp_path):
    path = shards(tmp_path, [2])[0]
    first = index_shards(path)
    expected = [first.shards[0].record(r) for r in range(2)]
    plant(path, **change)
    again = index_shards(path)
    assert [again.shards[0].record(r) for r in range(2)] == expected
    assert ShardReader(again).read(1).id == "test/1"
    assert same_entries(
        *(replace(one, arrays=stored_arrays(one)) for one in (index_shards(path).shards[0], first.shards[0]))
    )


def test_one_record_sixteen_times_is_refused(tmp_path):
    path = shards(tmp_path, [16])[0]
    real = index._map(index.index_tar(str(path)))
    plant(path, **{name: np.tile(getattr(real, name)[:2], 16) for name in ("offsets", "sizes", "crcs", "extensions")})
    reader = ShardReader(index_shards(path))
    assert {reader.read(i).id for i in range(16)} == {f"test/{i}" for i in range(16)}


def test_an_index_that_leaves_records_out_is_refused(tmp_path):
    path = shards(tmp_path, [3])[0]
    shard = index_shards(shards(tmp_path / "other", [2])).shards[0]
    facts = index._facts(shard) | {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    line = json.dumps(facts, separators=(",", ":")).encode()
    whole = line + b" " * (-(len(line) + 1) % 64) + b"\n" + stored_arrays(shard)
    Path(f"{path}.idx").write_bytes(whole)  # the first two of three records, as another tar's index says
    with pytest.raises(ValueError, match=f"^{path}: seen other records than its index says, .* .remove the .idx file"):
        ShardReader(index_shards(path)).read(0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"extensions": [0] * 4}, "k00001: seen 'k00001.json' of .* expected 'k00001.jpg'"),
        ({"keys": np.frombuffer(b"k00001k00000", np.uint8)}, "k00000: seen 'k00001.jpg' of .* expected 'k00000.jpg'"),
        ({"facts": {"tag_sets": ["negative"]}}, "k00001: seen other tags than its index says"),
        (
            {"facts": {"num_questions": 3}, "questions": [0, 1, 3], "tags": [0] * 3},
            "k00001#0: seen 1 questions, not as indexed",
        ),
    ],
)
def test_an_entry_that_is_not_the_tars_is_named_when_it_is_read(change, expected, tmp_path):
    path = shards(tmp_path, [2])[0]
    plant(path, **change)
    with pytest.raises(ValueError, match=f"^{path}:{expected}.*remove the .idx file"):
        ShardReader(index_shards(path)).read(1)


def test_with_a_manifest_the_index_beside_is_compared_with_the_bytes(tmp_path):
    path = shards(tmp_path, [2])[0]
    out = put(tmp_path / "m.json", index_shards(path).summary())
    plant(path, {"tag_sets": ["negative"]})
    with pytest.raises(
        ValueError, match=f"^{path}.idx: seen entries that are not the tar's, expected .*remove this file"
    ):
        ShardSource(str(path), manifest=str(out)).load()
    Path(f"{path}.idx").unlink()
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
        assert Questions(record[".json"].read(), ours[i].key)[0].to_json() == ours[i].to_json()
