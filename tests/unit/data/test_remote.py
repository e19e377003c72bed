"""Shards at a source, their index beside them, come when they are needed, into a cache that stays within its size."""

import errno
import fcntl
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from tests.unit.data_samples import encode, sample, shards
from ts_lightning.data import ShardDataModule, ShardSource, index_shards, remote
from ts_lightning.data.reader import ShardDataset, ShardReader
from ts_lightning.data.sample import SampleImage
from ts_lightning.data.write import write_shards
from ts_lightning.runs.class_paths import one_line

SHARDS, PER_SHARD = 12, 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TS_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and how many bytes of tars and of indexes went out."""

    sent: dict[str, int]

    def copyfile(self, source: object, outputfile: object) -> None:
        data = source.read()
        self.sent[Path(self.path).suffix] = self.sent.get(Path(self.path).suffix, 0) + len(data)
        outputfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, dict[str, int], list[Path]]]:
    """(URL pattern, bytes sent by suffix, tars) of twelve shards of pictures that don't compress."""
    folder, sent = tmp_path / "source", {}
    noise = [replace(sample(n), images=[SampleImage(f"{n}.png", 64, 64)]) for n in range(SHARDS * PER_SHARD)]
    rng = np.random.default_rng(0)
    for one in noise:
        path = tmp_path / "noise.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        one.image_bytes = [path.read_bytes()]
    paths = write_shards(noise, folder, "s", PER_SHARD)
    index_shards(paths)
    handler = type("Handler", (Counting,), {"sent": sent})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/s-{{000000..{SHARDS - 1:06d}}}.tar", sent, paths
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_batch_comes_after_three_shards_and_an_epoch_after_all(served, workers) -> None:
    pytest.importorskip("aiohttp")  # fsspec's for http
    url, sent, paths = served
    data = ShardDataModule(
        ShardSource(url), global_batch_size=4, micro_batch_size=2, encode=encode, pad_id=0, shuffle_window=PER_SHARD,
        num_workers=workers,
    )  # fmt: skip
    data.setup("fit")
    assert sent.get(".tar", 0) == 0
    batches = iter(data.train_dataloader())
    ids = list(next(batches)["ids"])
    assert 0 < sent[".tar"] <= 3 * max(path.stat().st_size for path in paths)
    assert sent[".idx"] < paths[0].stat().st_size
    ids += [i for batch in batches for i in batch["ids"]]
    data.teardown()
    assert sorted(ids) == sorted(f"test/{n}" for n in range(SHARDS * PER_SHARD))
    assert sent[".tar"] == sum(path.stat().st_size for path in paths)  # each once


def memory(path: Path, index: bool = True) -> str:
    """The URL of a tar in fsspec's memory, with its index beside it."""
    files, url = fsspec.filesystem("memory"), f"memory://bucket/{path.name}"
    files.pipe(url, path.read_bytes())
    if index:
        files.pipe(f"{url}.idx", Path(f"{path}.idx").read_bytes())
    return url


@pytest.fixture
def bucket() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_indexed_shard_is_fetched_when_a_record_is_read(tmp_path, cache, bucket) -> None:
    (path,) = shards(tmp_path, [3])
    local = index_shards(path)
    manifest = index_shards(memory(path))
    assert manifest.sha256 == local.sha256
    assert not list(cache.rglob("*.tar"))
    assert ShardReader(manifest).read(1).id == "test/1"
    assert len(list(cache.rglob("*.tar"))) == 1
    again = index_shards("memory://bucket/*.tar")  # the copy and its index agree
    assert again.shards == manifest.shards


def test_a_shard_comes_into_a_cache_without_locks(tmp_path, bucket, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "flock")

    (path,) = shards(tmp_path, [3])
    index_shards(path)
    url = memory(path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert ShardReader(index_shards(url)).read(1).id == "test/1"


def test_other_bytes_than_its_index_says_are_refused(tmp_path, cache, bucket) -> None:
    (path,) = shards(tmp_path, [3])
    index_shards(path)
    url = memory(path)
    manifest = index_shards(url)
    fsspec.filesystem("memory").pipe(url, path.read_bytes().replace(b"Step 1", b"Step 2"))
    with pytest.raises(OSError, match=r"bucket/s0-000000.tar: seen sha256 \w+, expected \w+ as in the index"):
        ShardReader(manifest).read(1)
    assert not list(cache.rglob("*.tar"))


def test_a_changed_shard_of_the_same_size_is_fetched_again(served) -> None:
    pytest.importorskip("aiohttp")
    url, _, (path, *_) = served
    url = url.split("{")[0] + "000000.tar"
    before = index_shards(url)
    path.write_bytes(path.read_bytes().replace(b"Step 1", b"Step 2"))
    os.utime(path, (1e9, 1e9))  # the server says no more of a file than its size and time
    index_shards(path)
    after = index_shards(url)
    assert before.shards[0].sha256 != after.shards[0].sha256
    assert ShardReader(after).read(0).turns[1].text.startswith("Step 2")


def test_a_shard_that_does_not_come_stops_the_run_and_is_no_bad_record(tmp_path, cache, bucket, monkeypatch) -> None:
    (path,) = shards(tmp_path, [3])
    index_shards(path)
    manifest = index_shards(memory(path))
    files, asked = fsspec.filesystem("memory"), []

    def flaky(url: str) -> tuple[object, str]:
        asked.append(url)
        if len(asked) <= 4:
            raise RuntimeError("no route")
        return files, url

    monkeypatch.setattr(fsspec.core, "url_to_fs", flaky)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    with pytest.raises(OSError, match=r"^memory:///bucket/s0-000000\.tar: seen no readable shard \(no route\)"):
        ShardDataset(manifest, encode).row(0)
    assert len(asked) == 3
    assert ShardDataset(manifest, encode).row(0)["row_valid"]
    assert len(asked) == 5


def test_a_shard_that_a_loader_process_misses_is_one_line(tmp_path, cache, bucket) -> None:
    (path,) = shards(tmp_path, [4])
    index_shards(path)
    url = memory(path)
    data = ShardDataModule(
        ShardSource(url), global_batch_size=4, micro_batch_size=2, encode=encode, pad_id=0, num_workers=1,
    )  # fmt: skip
    data.setup("fit")
    fsspec.filesystem("memory").rm(url)
    with pytest.raises(OSError, match="in DataLoader worker process 0") as caught:
        next(iter(data.train_dataloader()))
    data.teardown()
    assert one_line(caught.value).startswith("memory:///bucket/s0-000000.tar: seen no readable shard (")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://k:s/e@b/x.tar", "s3://b/x.tar"),
        ("s3://k:s@e/f@b/x.tar: seen no shard", "s3://b/x.tar: seen no shard"),
        ("http://u:p?q@h", "http://h"),
        ("az://c/x.tar?sig=1", "az://c/x.tar"),
        ("['az://c/x-?.tar?sig=1', 'az://c/y?.tar']", "['az://c/x-?.tar', 'az://c/y?.tar']"),
        ("http://u:p@h:80/x.tar?mail=me@e&sig=1", "http://h:80/x.tar"),
        ("http://h:80/x.tar?mail=me@e&sig=1", "http://h:80/x.tar"),
        ("hf://datasets/a/b@main/x.tar", "hf://datasets/a/b@main/x.tar"),
    ],
)
def test_secrets_of_every_shape_stay_out(text: str, shown: str) -> None:
    assert remote.without_secrets(text) == shown


def test_a_signature_stays_out_of_names_and_messages(served) -> None:
    pytest.importorskip("aiohttp")
    url = served[0].split("{")[0] + "000000.tar"
    first, second = (index_shards(f"{url}?token={letter * 300}").shards[0].path for letter in "ab")
    assert Path(first).name == Path(second).name == "s-000000.tar"
    assert first != second
    with pytest.raises(ValueError, match=r"^http://127[^?@]*/none\.tar: seen no [^?@]*$"):
        index_shards(url.replace("s-000000", "none").replace("://", "://me:pass@") + "?token=secret")


def test_the_cache_stays_within_its_size(tmp_path, cache, bucket, monkeypatch) -> None:
    paths = shards(tmp_path, [3] * 5)
    index_shards(paths)
    manifest = index_shards([memory(path) for path in paths])
    size = paths[0].stat().st_size
    monkeypatch.setenv("TS_LIGHTNING_CACHE_BYTES", str(2 * size))
    for i in range(15):
        assert ShardReader(manifest).read(i).id == f"test/{i}"
        assert sum(tar.stat().st_size for tar in cache.rglob("*.tar")) <= 2 * size
    assert sorted(tar.name for tar in cache.rglob("*.tar")) == ["s3-000000.tar", "s4-000000.tar"]
    assert ShardReader(manifest).read(0).id == "test/0"  # fetched again
    assert not list(cache.rglob("*.part"))


def test_what_is_asked_for_ahead_is_there_when_it_is_read(tmp_path, cache, bucket) -> None:
    paths = shards(tmp_path, [2, 2])
    index_shards(paths)
    manifest = index_shards([memory(path) for path in paths])
    ahead = remote.Ahead()
    ahead.want(manifest.shards_of(np.array([3, 2, 0])))
    ahead._pool.shutdown(wait=True)
    assert sorted(tar.name for tar in cache.rglob("*.tar")) == ["s0-000000.tar", "s1-000000.tar"]
    fsspec.filesystem("memory").rm("/bucket/s0-000000.tar")
    assert ShardReader(manifest).read(0).id == "test/0"
