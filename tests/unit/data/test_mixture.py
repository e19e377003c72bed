"""Mixtures of sources: shares, each record once before any comes again, exact state; tags, remote shards, manifests."""

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.unit.data_samples import encode, sample, shards
from ts_lightning.cli import main
from ts_lightning.data import ShardDataModule, ShardSource, index_shards
from ts_lightning.data.mixture import MixedStream, of_rows, quotas
from ts_lightning.data.order import StreamState
from ts_lightning.data.write import write_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total.*")


def test_quotas_are_rounded_by_largest_remainder() -> None:
    assert quotas([1, 1, 2]) == [250, 250, 500]
    assert quotas([1, 1, 1]) == [334, 333, 333]
    assert quotas([0.6, 999.4]) == [1, 999]
    for weights in ([], [1, 0], [1, -1]):
        with pytest.raises(ValueError, match="expected numbers above 0"):
            quotas(weights)
    with pytest.raises(ValueError, match="at least 1/1000 of their sum"):
        quotas([1, 9999])


def stream(batch: int = 7, consumed: int = 0, window: int = 4) -> MixedStream:
    return MixedStream([[3, 5], [40], [2]], [1, 3, 1], batch, StreamState("sha", 5, 0, consumed), window)


def take(source: MixedStream, count: int) -> list[int]:
    return [row for _, batch in zip(range(count), source.batches(endless=True), strict=False) for row in batch.tolist()]


def test_rows_of_many_questions_are_drawn_less_often() -> None:
    drawn = of_rows([1, 1, 2], questions=[32, 8, 6], rows=[8, 8, 6])
    assert drawn == [0.25, 1, 2]
    assert quotas(drawn) == [77, 308, 615]  # 77 * 4, 308 and 615 questions


def test_shares_and_passes() -> None:
    rows = take(stream(50), 60)
    by_source = [[r for r in rows if low <= r < high] for low, high in ((0, 8), (8, 48), (48, 50))]
    assert [len(part) for part in by_source] == [600, 1800, 600]  # exact in three whole blocks
    for part, size in zip(by_source, (8, 40, 2), strict=True):
        for start in range(0, len(part), size):
            assert len(set(part[start : start + size])) == size  # a whole pass before any repetition
    assert by_source[1][:40] != by_source[1][40:80]


def test_batches_depend_on_the_position_alone() -> None:
    rows = take(stream(6), 400)
    assert take(stream(12), 200) == rows
    assert take(stream(6, consumed=6 * 173), 50) == rows[6 * 173 : 6 * 223]
    assert take(stream(5, consumed=6 * 173), 6) == rows[6 * 173 : 6 * 178]  # unaligned, another batch size
    one_pass = stream(6)
    assert len(one_pass) == 50 // 6
    assert len(list(one_pass.batches(endless=False))) == 8


@pytest.fixture
def two(tmp_path: Path) -> dict[str, str]:
    shards(tmp_path / "a", [5, 8])
    shards(tmp_path / "b", [30], start=100)
    return {name: f"{tmp_path}/{name}/*.tar" for name in "ab"}


def module(
    two: dict[str, str], weight: float = 2.0, rank: int = 0, world: int = 1, **options: object
) -> ShardDataModule:
    mix = {"a": ShardSource(two["a"]), "b": ShardSource(two["b"], weight=weight)}
    data = ShardDataModule(mix=mix, global_batch_size=6, micro_batch_size=2, encode=encode, pad_id=0, **options)
    data.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": world}, overfit_batches=0, lightning_module=None
    )
    data.setup("fit")
    return data


def ids(data: ShardDataModule, batches: int) -> list[list[str]]:
    out = []
    for _, batch in zip(range(batches), data.train_dataloader(), strict=False):
        out.append(batch["ids"])
        data.advance()
    return out


def test_a_mixture_resumes_exactly_on_other_ranks_and_workers(two: dict[str, str]) -> None:
    expected = ids(module(two), 40)
    first = module(two)
    assert ids(first, 13) == expected[:13]
    state = first.state_dict()
    ranks = [module(two, rank=r, world=3, num_workers=r % 2) for r in range(3)]
    for data in ranks:
        data.load_state_dict(state)
    shares = [ids(data, 10) for data in ranks]
    assert [[i for part in parts for i in part] for parts in zip(*shares, strict=True)] == expected[13:23]
    counts = Counter(int(i.split("/")[1]) >= 100 for batch in expected for i in batch)
    assert abs(counts[True] / 240 - 2 / 3) < 0.07
    with pytest.raises(ValueError, match=r"data.train: seen shards \w+, expected \w+ as in the checkpoint"):
        module(two, weight=3.0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"data.shuffle_window: seen 5, expected 16384 as in the checkpoint"):
        module(two, shuffle_window=5).load_state_dict(state)


def test_a_state_of_version_1_still_loads(two: dict[str, str]) -> None:
    data = module(two)
    old = {k: v for k, v in data.state_dict().items() if k != "shuffle_window"} | {"version": 1}
    data.load_state_dict(old)
    assert data.state_dict()["shuffle_window"] == 16384


def tagged(number: int, tags: list[str]):
    one = sample(number)
    one.tags = tags
    return one


def test_tags_choose_and_max_samples_are_nested(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tags = [["cot", "x"], ["negative"], ["cot"], [], ["cot", "negative"], ["x"]]
    write_shards([tagged(i, own) for i, own in enumerate(tags)], tmp_path, "s", maxcount=4)
    pattern = f"{tmp_path}/*.tar"

    def chosen(**options: object) -> list[str]:
        manifest = ShardSource(pattern, **options).load()
        assert sum(manifest.shard_sizes) == manifest.num_samples
        return [manifest.locate(i)[0].question_keys()[manifest.locate(i)[1]] for i in range(manifest.num_samples)]

    assert chosen(include_tags=["cot"]) == ["k00000", "k00002", "k00004"]
    assert chosen(include_tags=["cot", "x"], exclude_tags=["negative"]) == ["k00000", "k00002", "k00005"]
    assert chosen(exclude_tags=["cot", "negative"]) == ["k00003", "k00005"]
    assert chosen(include_tags=["cot"], max_samples=2) == ["k00000", "k00002"]
    sums = {ShardSource(pattern, **o).load().sha256 for o in ({}, {"include_tags": ["cot"]}, {"exclude_tags": ["cot"]})}
    assert len(sums) == 3
    with pytest.raises(ValueError, match=r"seen no such record, expected some \(tags: cot, negative, x\)"):
        ShardSource(pattern, include_tags=["dog"]).load()
    assert not caplog.messages
    assert len(chosen(exclude_tags=["dog"])) == 6
    assert "seen 'dog', which no record has; the tags here: cot, negative, x" in caplog.messages[0]


def test_the_first_of_several_kinds_are_of_all_kinds(tmp_path: Path) -> None:
    """Six records of one picture and three of two lie in shards of their own: of six, four and two are taken."""
    records = [sample(i) for i in range(9)]
    for one in records[::3]:
        one.images, one.image_bytes = one.images * 2, one.image_bytes * 2
        one.turns[0].text = f"<image>{one.turns[0].text}"
    write_shards(records, tmp_path, "s", maxcount=2)

    def chosen(count: int) -> set[str]:
        manifest = ShardSource(f"{tmp_path}/*.tar", max_samples=count).load()
        assert manifest.num_rows == count
        return {manifest.locate(i)[0].question_keys()[manifest.locate(i)[1]] for i in range(count)}

    assert chosen(6) == {f"k0000{i}" for i in (1, 2, 4, 5, 0, 3)}
    assert all(chosen(count) < chosen(count + 1) for count in range(1, 9))


def test_remote_shards_are_fetched_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_LIGHTNING_CACHE", str(tmp_path / "cache"))
    (path,) = shards(tmp_path / "a", [3])
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/s-0.tar", path.read_bytes())
    local = index_shards(str(path))
    manifest = index_shards("memory://bucket/s-*.tar")
    assert manifest.sha256 == local.sha256
    assert manifest.shards[0].path.startswith(str(tmp_path / "cache"))
    copies = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.tar")}
    assert len(copies) == 1
    assert [shard.path for shard in index_shards(f"file://{path}").shards] == [str(path)]  # a path: not copied
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1
    index_shards("memory://bucket/s-*.tar")
    assert all(p.stat().st_mtime_ns == time for p, time in copies.items())
    (other,) = shards(tmp_path / "b", [4])
    memory.pipe("/bucket/s-0.tar", other.read_bytes())
    assert index_shards("memory://bucket/s-0.tar").num_samples == 4
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "url", ["pipe:touch hit", "pipe://touch hit", "simplecache::file:///x.tar", "ssh://host/x.tar"]
)
def test_other_protocols_are_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected one of file, memory, http"):
        index_shards(url)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"no\.tar: seen no such shard"):
        index_shards("file:///nowhere/no.tar")


def test_what_a_remote_library_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(MemoryFileSystem):
        def info(self, path: str, **options: object) -> dict[str, object]:
            return super().info(path, **options) | {"size": None}  # a server that sends in chunks

    monkeypatch.setenv("TS_LIGHTNING_CACHE", str(tmp_path / "cache"))
    (path,) = shards(tmp_path / "a", [3])
    remote = Remote()
    remote.pipe("/chunked/s.tar", path.read_bytes())
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (remote, "/chunked/s.tar"))
    assert index_shards("memory://chunked/s.tar").num_samples == 3
    (note,) = (tmp_path / "cache").rglob("source.json")
    note.write_text("{")  # a fetch that was killed
    assert index_shards("memory://chunked/s.tar").num_samples == 3
    remote.rm("/chunked", recursive=True)

    def refuse(url: str) -> None:
        raise RuntimeError("401,\nwho are you?")  # no OSError: libraries have classes of their own

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(ValueError, match=r"^s3://b/x\.tar: seen no readable shard \(401, who are you\?\), expected"):
        index_shards("s3://b/x.tar")


def test_a_manifest_names_every_changed_shard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = shards(tmp_path, [2, 3])
    out = tmp_path / "manifest.json"
    pattern = f"{tmp_path}/*.tar"

    def run(*args: str) -> tuple[int, str]:
        return main(["data", "index", pattern, *args]), capsys.readouterr().err

    assert run("--out", str(out))[0] == 0
    stored = json.loads(out.read_text())
    assert stored["__kind__"] == "wids-shard-index-v1"
    assert [(s["url"], s["nsamples"], s["filesize"]) for s in stored["shardlist"]] == [
        (str(p), n, p.stat().st_size) for p, n in ((first, 2), (second, 3))
    ]
    assert run("--check", str(out))[0] == 0
    whole, time = second.read_bytes(), second.stat().st_mtime_ns
    for place in (5, 600, len(whole) - 1):  # a header, a member, the padding; size and time stay
        second.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        os.utime(second, ns=(time, time))
        status, error = run("--check", str(out))
        assert status == 2
        assert second.name in error
    second.unlink()
    assert "seen no such shard" in run("--check", str(out))[1]
