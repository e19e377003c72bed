"""Order on changing ranks and workers, two processes against one, the loader's speed."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset

from tests.reliability import kills, processes, tiny_run
from tools.bench.loader import make_pictures, peer
from ts_lightning.data import Sample, ShardDataModule, ShardSource
from ts_lightning.data.order import TrainStream
from ts_lightning.data.sample import Answer, SampleImage, Turn
from ts_lightning.data.write import write_shards
from ts_lightning.models.pixels import load_pixels


def encode(sample: Sample, for_generation: bool = False) -> dict[str, Any]:
    """A row with the picture at 336 pixels."""
    ids = torch.zeros(4, dtype=torch.long)
    pixels = load_pixels(sample.image_bytes[0], 336)[None]
    return {"input_ids": ids, "step_ids": ids, "pixel_values": pixels, "task": 0, "sample": sample.without_bytes()}


def _encode_in(workers: int, sample: Sample, for_generation: bool = False) -> dict[str, Any]:
    """`encode`, in one of so many worker processes or in the rank's own."""
    info = torch.utils.data.get_worker_info()
    seen = 0 if info is None else info.num_workers
    assert seen == workers, f"seen {seen} workers, expected {workers}"
    return encode(sample, for_generation)


def _module(shards: str, rank: int, ranks: int, workers: int, batch: int) -> ShardDataModule:
    """One rank's data; batches that 5 divides are of a mixture."""
    mix = {name: ShardSource(shards, weight=weight) for name, weight in (("a", 1.0), ("b", 3.0))}
    source: dict[str, Any] = {"mix": mix} if batch % 5 == 0 else {"train": ShardSource(shards)}
    data = ShardDataModule(
        **source, global_batch_size=batch, micro_batch_size=1, num_workers=workers,
        encode=partial(_encode_in, workers), pad_id=0,
    )  # fmt: skip
    sharing = {"rank": rank, "num_replicas": ranks}
    data.trainer = SimpleNamespace(distributed_sampler_kwargs=sharing, overfit_batches=0, lightning_module=None)  # type: ignore[assignment]
    data.setup("fit")
    return data


def elastic(folder: Path, quick: bool) -> dict[str, Any]:
    """Item 3: one source and a mixture on 1, 4, 2, 3 ranks and 0, 1, 4 workers.

    First in turn, then each pair (quick: four of them) from a position that no whole number of its batches leads to.
    """
    shards = tiny_run.write(folder / "shards", 96)
    pairs = list(zip((1, 4, 2, 3), (0, 1, 4, 0), strict=True))
    every = pairs if quick else list(product((1, 4, 2, 3), (0, 1, 4)))
    compared = equal = 0
    for batch, before, unit in ((12, 7, 1), (60, 35, 5)):
        order = [i for ids in _single(shards, unit, 6 * batch // unit) for i in ids]
        state, position = _module(shards, 0, 1, 0, batch).state_dict(), 0
        for ranks, workers in pairs:
            steps = 1 + ranks % 2
            batches, state = _share(shards, ranks, workers, batch, state, steps)
            for got in batches:
                equal += got == order[position : position + batch]
                compared, position = compared + 1, position + batch
        first = _module(shards, 0, 1, 0, before)
        first.advance()
        for ranks, workers in every:
            (got,), _ = _share(shards, ranks, workers, batch, first.state_dict(), 1)
            compared, equal = compared + 1, equal + (got == order[before : before + batch])
    assert compared == equal, (compared, equal)
    return {"global_batches": compared, "identical": equal}


def _single(shards: str, batch: int, count: int) -> list[list[str]]:
    """The ids of the first batches on one rank without workers."""
    loader = _module(shards, 0, 1, 0, batch).train_dataloader()
    return [b["ids"] for _, b in zip(range(count), loader, strict=False)]


def _share(
    shards: str, ranks: int, workers: int, batch: int, state: dict[str, Any], steps: int
) -> tuple[list[list[str]], dict[str, Any]]:
    """The ids of `steps` global batches from `state` on, the ranks' shares side by side, and the state behind them."""
    shares = []
    for rank in range(ranks):
        data = _module(shards, rank, ranks, workers, batch)
        data.load_state_dict(state)
        shares.append([b["ids"] for _, b in zip(range(steps), data.train_dataloader(), strict=False)])
        for _ in range(steps):
            data.advance()
        after = data.state_dict()
        data.teardown()
    return [[i for part in parts for i in part] for parts in zip(*shares, strict=True)], after


def two_processes(folder: Path) -> dict[str, Any]:
    """Item 12: two ranks against one, shards of uneven sizes, and one shard for two ranks."""
    worst = furthest = 0.0
    for name, shard in (("uneven", 7), ("one shard", 200)):
        shards = tiny_run.write(folder / name / "shards", 4 * kills.STEPS, shard)
        runs = []
        for ranks in (1, 2):
            root = folder / name / str(ranks)
            args = kills.given(shards, root, ranks)
            args += ["--model.init_args.optimizer", '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}']
            statuses = processes.finish(processes.start(args, root / "run.log", None, ranks))
            assert statuses == [0] * ranks, (root / "run.log").read_text()[-2000:]
            runs.append((tiny_run.state(root, kills.STEPS)["state_dict"], tiny_run.metrics(root)))
        (one, one_rows), (two, two_rows) = runs
        worst = max(worst, *(float((one[k] - two[k]).abs().max()) for k in one))
        furthest = max(furthest, compare_rows(one_rows, two_rows))
    assert worst <= 1e-6, worst
    return {"largest_weight_difference": worst, "largest_metric_difference": furthest, "steps": kills.STEPS}


def compare_rows(one: list[dict[str, str]], two: list[dict[str, str]]) -> float:
    """The largest difference in any column of two runs' metrics; at most 1e-6, or 1e-6 of a value above 1."""
    furthest = 0.0
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys(), a.keys() ^ b.keys()
        for key, value in a.items():
            assert bool(value) == bool(b[key]), key
            if value:
                difference = abs(float(value) - float(b[key]))
                seen = f"{key} of step {a['step']}: {value} and {b[key]}"
                assert difference <= 1e-6 * max(1.0, abs(float(value))), seen
                furthest = max(furthest, difference)
    return furthest


class _Peer(IterableDataset):
    def __init__(self, tars: list[str]) -> None:
        self.tars = tars

    def __iter__(self) -> Iterator[torch.Tensor]:
        records = wds.WebDataset(self.tars, shardshuffle=False, empty_check=False)  # it splits by worker itself
        return (peer(record["jpg"]) for record in records)


def _picture(number: int, data: bytes) -> Sample:
    turns = [Turn("user", "<image>\nWhat?"), Turn("assistant", "this")]
    images = [SampleImage(f"{number}.jpg", 640, 480)]
    one = Sample(id=f"p-{number}", source="bench", task="understanding", images=images, turns=turns, subtask=None)
    one.answer, one.key, one.image_bytes, one.tags, one.regions = Answer("this"), f"{number:05d}", [data], [], []
    return one


def loader(folder: Path, quick: bool) -> dict[str, Any]:
    """Item 13: two workers against plain webdataset + PIL, and the exact order against the order of the files."""
    rounds, count = (2, 256) if quick else (7, 1024)
    pictures = make_pictures(64)
    tars = write_shards((_picture(i, pictures[i % 64]) for i in range(count)), folder / "speed", "p", count // 8)

    class FileOrder(TrainStream):
        def batches(self, endless: bool) -> Iterator[np.ndarray]:
            rows = np.arange(self.num_samples)
            return (rows[i : i + 16] for i in range(0, self.num_samples, 16))

    def ours(in_file_order: bool) -> float:
        data = ShardDataModule(
            train=ShardSource([str(t) for t in tars]), num_workers=2, encode=encode, pad_id=0, shuffle_window=256,
            global_batch_size=16, micro_batch_size=16,
        )  # fmt: skip
        data.setup("fit")
        stream: Any = data._stream
        if in_file_order:
            stream.__class__ = FileOrder
        seconds, seen = _drained(data.train_dataloader())
        data.teardown()
        assert seen == count, seen
        return seconds

    def theirs() -> float:
        seconds, seen = _drained(DataLoader(_Peer([str(t) for t in tars]), 16, num_workers=2))
        assert seen == count, f"the peer has to read every picture once, and read {seen}"
        return seconds

    times: dict[str, list[float]] = {"exact": [], "file": [], "peer": []}
    for _ in range(rounds):
        times["exact"].append(ours(False))
        times["file"].append(ours(True))
        times["peer"].append(theirs())
    best = {name: min(values) for name, values in times.items()}
    figures = {
        "pictures_per_second": round(count / best["exact"]),
        "times_faster": round(best["peer"] / best["exact"], 2),
        "cost_of_exactness": round(best["exact"] / best["file"] - 1, 3),
    }
    assert figures["times_faster"] >= (1.5 if quick else 2.5), figures
    assert quick or figures["cost_of_exactness"] <= 0.05, figures
    return figures


def _drained(loader: Any) -> tuple[float, int]:
    """Seconds from the first batch on (starting workers is not the loader's speed), and the pictures of all batches."""
    batches = iter(loader)
    seen = _pictures(next(batches))
    began = time.perf_counter()
    seen += sum(map(_pictures, batches))
    return time.perf_counter() - began, seen


def _pictures(batch: Any) -> int:
    return len(batch["ids"] if isinstance(batch, dict) else batch)
