"""The index: what it holds, what it refuses (one line each), and when it is made anew."""

import io
import json
import os
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.data_samples import picture, sample, shards
from ts_lightning.cli import main
from ts_lightning.data import index, index_shards, tar
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.tar import _Forward
from ts_lightning.data.write import write_shards


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def members(*numbers: int) -> list[tuple[str, bytes]]:
    return [
        (f"k{n:05d}.{extension}", data)
        for n in numbers
        for extension, data in (("jpg", picture(n)), ("json", sample(n).to_json()))
    ]


def refused(path: object) -> str:
    with pytest.raises(ValueError) as error:
        index_shards(path)
    assert "\n" not in str(error.value)
    assert "seen" in str(error.value)
    assert "expected" in str(error.value)
    return str(error.value)


def read_headers(data: bytes) -> list[tuple[str, int, int]] | str:
    """Every member, or what is wrong."""
    found, position = [], 0
    try:
        while (member := tar.next_member(lambda start, count: data[start : start + count], position)).name:
            found.append(tuple(member))
            position = member.end
    except tar.NotATar as error:
        return str(error)
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_short_way_through_a_header_sees_what_the_long_way_sees(form, monkeypatch):
    info = tarfile.TarInfo("folder/k0.jpg")
    info.size, info.mtime = 5, 1_700_000_000
    whole = info.tobuf(form) + b"abcde".ljust(512, b"\0") + bytes(1024)
    assert tar._size_of_usual(whole[:512]) == 5
    long = tarfile.TarInfo("k" * 98 + "/" + "n" * 90 + ".jpg")
    changed = [whole, long.tobuf(form) + bytes(1024), whole[:400]]
    for place in range(512):  # a byte changed alone breaks the sum; changed with the sum it is a header again
        for byte in b"\0 08:\xff":
            header = bytearray(whole[:512])
            header[place] = byte
            changed.append(bytes(header) + whole[512:])
            header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
            changed.append(bytes(header) + whole[512:])
    found = [read_headers(data) for data in changed]
    assert found[0] == [("folder/k0.jpg", 512, 5)]
    monkeypatch.setattr(tar, "_size_of_usual", lambda block: -1)
    assert found == [read_headers(data) for data in changed]


def test_every_member_lies_where_the_index_says(tmp_path):
    path = shards(tmp_path, [3])[0]
    manifest = index_shards(str(path))
    assert manifest.num_samples == 3
    assert manifest.num_bytes == path.stat().st_size
    with tarfile.open(path) as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar}
    data, found = path.read_bytes(), {}
    for r, key in enumerate(manifest.shards[0].question_keys()):
        for name, offset, size, crc in manifest.shards[0].record(r):
            found[f"{key}.{name}"] = data[offset : offset + size]
            assert crc == zlib.crc32(found[f"{key}.{name}"])
    assert found == expected


def test_globs_lists_and_locate(tmp_path):
    shards(tmp_path, [2, 1, 3])
    manifest = index_shards(f"{tmp_path}/*.tar")
    assert manifest.shard_sizes == [2, 1, 3]
    assert [(manifest.locate(i)[0].path[-13:-11], manifest.locate(i)[1]) for i in range(6)] == [
        *(("s0", 0), ("s0", 1), ("s1", 0)),
        *(("s2", 0), ("s2", 1), ("s2", 2)),
    ]
    with pytest.raises(IndexError):
        manifest.locate(6)
    assert index_shards([f"{tmp_path}/s[12]*.tar", tmp_path / "s0-000000.tar"]).shard_sizes == [1, 3, 2]
    head = manifest.head(3)
    assert (head.shard_sizes, head.num_samples) == ([2, 1, 0], 3)
    assert head.sha256 != manifest.sha256


def test_the_manifest_hash_names_content_not_place(tmp_path):
    for folder in ("a", "b", "c"):
        shards(tmp_path / folder, [2, 1], start=7 if folder == "c" else 0)
    a, b, c = (index_shards(f"{tmp_path}/{folder}/*.tar").sha256 for folder in "abc")
    assert a == b != c


def test_no_such_shard_and_one_twice(tmp_path):
    assert refused(f"{tmp_path}/no-*.tar") == (
        f"{tmp_path}/no-*.tar: seen no such shard, expected at least one .tar file"
    )
    assert "seen an empty list" in refused([])
    path = shards(tmp_path, [1])[0]
    assert "seen twice" in refused([path, f"{tmp_path}/*.tar"])


def test_empty_files_and_tars(tmp_path):
    path = tmp_path / "x.tar"
    path.touch()
    assert refused(path) == f"{path}: seen an empty file (0 bytes), expected a tar with at least one record"
    write_tar(path, [])
    assert refused(path) == f"{path}: seen an empty tar (no members), expected at least one record"


def test_every_cut_is_found(tmp_path):
    whole = Path(write_tar(tmp_path / "whole.tar", members(0, 1, 2))).read_bytes()
    end = len(whole.rstrip(b"\0"))
    end = -(-end // 512) * 512 + 1024  # data, then the two blocks that end a tar
    path = tmp_path / "cut.tar"
    for length in [*range(1, end, 97), *range(512, end, 512), end - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(path), length
    path.write_bytes(whole[:end])
    assert index_shards(path).num_samples == 3


def test_junk_behind_the_end_and_compressed_files(tmp_path):
    path = Path(write_tar(tmp_path / "x.tar", members(0)))
    path.write_bytes(path.read_bytes() + b"junk")
    assert "seen unreadable bytes after member k00000.json" in refused(path)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("k.json"), io.BytesIO())
    assert "seen a cut or unreadable tar" in refused(path)
    path.write_bytes(b"<html>" * 1000)
    assert "seen a cut or unreadable tar" in refused(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: [*m, *members(0)], ":k00000: seen a duplicate key ('k00000.jpg' twice), expected unique keys"),
        (lambda m: [m[0], *members(1), m[1]], ":k00000: seen 'k00000.json' away from its record"),
        (lambda m: m[1:], ":k00000: seen a record without image, expected 1 (as its JSON says)"),
        (lambda m: m[:1], ":k00000: seen a record without json, expected k00000.json"),
        (lambda m: [*m, ("k00000.1.jpg", b"x")], ":k00000: seen images numbered [0, 1], expected 1 counted from 0"),
        (lambda m: [*m, ("k00000.txt", b"x")], ":k00000: seen the member 'k00000.txt', expected json, jpg"),
        (lambda m: [*m, ("README", b"x")], ": member 'README': seen no key or extension"),
        (lambda m: [*m, ("../k.json", b"x")], ": member '../k.json': seen an unsafe name, expected a relative path"),
        (lambda m: [*m, ("/k.json", b"x")], ": member '/k.json': seen an unsafe name"),
    ],
)
def test_a_record_that_is_not_whole_is_refused(tmp_path, change, expected):
    path = write_tar(tmp_path / "x.tar", change(members(0)))
    assert refused(path).startswith(path + expected)


def test_links_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo("k.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        assert "member 'k.jpg': seen a link or device, expected a regular file" in refused(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("s{0..2}-000000.tar", [0, 1, 2]),
        ("s{2,0}-000000.tar", [2, 0]),
        ("s0-{000000..000000}.tar", [0]),
        ("s{1..2}-*.tar", [1, 2]),
    ],
)
def test_braces_stand_for_shards(tmp_path, pattern, found):
    shards(tmp_path, [1, 2, 3])
    assert index_shards(f"{tmp_path}/{pattern}").shard_sizes == [n + 1 for n in found]


def test_every_shard_of_the_braces_has_to_be_there(tmp_path):
    shards(tmp_path, [1, 2])
    assert refused(f"{tmp_path}/s{{0..2}}-000000.tar").startswith(f"{tmp_path}/s2-000000.tar: seen no such shard")
    assert "seen more than 1000000 shards" in refused(f"{tmp_path}/s{{0..99999999}}.tar")


def test_a_hole_of_gigabytes_is_refused_without_being_read(tmp_path, monkeypatch):
    path, more, read = tmp_path / "x.tar", _Forward._more, []
    monkeypatch.setattr(_Forward, "_more", lambda self, count: read.append(len(data := more(self, count))) or data)
    for kind, name in ((b"L", "././@LongLink"), (b"x", "pax"), (b"0", "a.jpg"), (b"0", "a.json"), (None, "")):
        with open(path, "wb") as file:
            if kind is not None:
                info = tarfile.TarInfo(name)
                info.size, info.type = 3 << 30, kind
                file.write(info.tobuf())
            file.truncate(3 << 30)
        tracemalloc.start()
        assert refused(path).startswith(f"{path}: ")
        assert 0 < sum(read) <= 2 << 20  # of 3 GB; that's why it takes no second
        read.clear()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def pax(record: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(record), b"x"
    return info.tobuf() + record + bytes(-len(record) % 512)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (pax(b"99 GNU.sparse.size=x\n"), "seen b'99 GNU.sparse.size=x' in a PAX header"),
        (pax(b"20 GNU.sparse.size=x\n"), "seen a file with holes, expected a regular file"),
        (pax(b"9" * 5000 + b" path=x\n"), "in a PAX header, expected LENGTH KEY=VALUE"),
        (pax(b"5010 size=" + b"9" * 4999 + b"\n"), "member 'k00000.jpg': seen the size b'99999999999999999999'"),
        (pax(b"10 path=k\n") * 300, "seen 5 headers about the name of one member, expected at most"),
    ],
)
def test_headers_about_names_are_bounded(tmp_path, head, expected):
    path = Path(write_tar(tmp_path / "x.tar", members(0)))
    path.write_bytes(head + path.read_bytes())
    assert expected in refused(path)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path, tar_format):
    names = ["a" * 300, "b" * 90 + "/" + "c" * 90, "\u72d7"]
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format) as tar:
        tar.addfile(tarfile.TarInfo("__remark__/x"))
        folder = tarfile.TarInfo("b" * 90)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in names:
            for extension, data in (("jpg", picture(0)), ("json", sample(0).to_json())):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    manifest = index_shards(tmp_path / "x.tar")
    assert [ShardReader(manifest).read(i).key for i in range(3)] == names


def test_records_without_pictures_are_fine_when_their_json_names_none(tmp_path):
    one = sample(0, images=0)
    one.regions, one.answer, one.turns[1].text, one.turns[1].steps = [], None, "There.", None
    assert index_shards(write_shards([one], tmp_path, "text")).num_samples == 1


def test_an_invalid_record_is_listed_not_refused(tmp_path):
    record = json.loads(sample(1).to_json())
    record["regions"][0]["box"] = [0.5, 0.5, 0.4, 0.6]
    path = write_tar(
        tmp_path / "x.tar", [*members(0), ("k00001.jpg", picture(1)), ("k00001.json", json.dumps(record).encode())]
    )
    for _ in range(2):  # made, then read from the file beside it
        manifest = index_shards(path)
        assert len(manifest.bad) == 1
        assert manifest.bad[0][0] == f"{path}:k00001"
        assert manifest.bad[0][1].startswith("field regions[0].box: seen a reversed or empty box")
    assert manifest.head(1).bad == []


def test_the_index_file_is_used_until_the_tar_changes(tmp_path, monkeypatch):
    path = shards(tmp_path, [2])[0]
    first = index_shards(path)
    scan, scans = index.scan_tar, []
    monkeypatch.setattr(index, "scan_tar", lambda p: scans.append(p) or scan(p))
    again = index_shards(path)
    assert not scans
    assert (again.sha256, again.shards[0].record(1)) == (first.sha256, first.shards[0].record(1))
    os.utime(path, ns=(1, 1))  # another time, the same bytes
    assert index_shards(path).sha256 == first.sha256
    assert not scans
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Step 1", b"Step 2"))  # the same size, other bytes
    assert index_shards(path).sha256 != first.sha256
    assert len(scans) == 1
    beside = Path(f"{path}.idx")
    beside.write_bytes(beside.read_bytes()[:100])
    index_shards(path)
    beside.write_text(json.dumps({"versions": [0, 0]}))
    index_shards(path)
    assert len(scans) == 3


def test_a_read_only_folder_is_fine(tmp_path, monkeypatch):
    path = shards(tmp_path, [2])[0]

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("not here")

    for name in ("os.replace", "tempfile.mkstemp"):  # a full disk, a folder without permission
        monkeypatch.setattr(f"ts_lightning.data.index.{name}", refuse)
        assert index_shards(path).num_samples == 2
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_command_reports_and_exits(tmp_path, capsys):
    path = shards(tmp_path, [2])[0]
    out = tmp_path / "new/manifest.json"
    assert main(["data", "index", str(path), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["num_samples"] == 2
    assert json.loads(out.read_text())["sha256"] == index_shards(path).sha256
    path.write_bytes(b"")
    assert main(["data", "index", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"ts-lightning: error: {path}: seen an empty file")


def test_a_picture_beyond_the_limits_is_a_bad_record_before_training(tmp_path: Path) -> None:
    """A picture that moves is found in its first bytes, and only its own questions are bad."""
    frames = [Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in (0, 200)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    samples = [sample(i, kind="WEBP") for i in range(3)]
    samples[1].image_bytes = [stream.getvalue()]
    (path,) = write_shards(samples, tmp_path, "x")
    assert index.index_shard(str(path)).bad == {1: "image: seen 2 frames; only still pictures"}
