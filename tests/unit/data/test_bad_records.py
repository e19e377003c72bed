"""Unreadable records: reported once with their key, masked up to the budget, then the run stops with the list."""

import logging
from dataclasses import replace

import pytest
import torch

from tests.unit.data_samples import encode, sample
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.data.images import inspect_image
from ts_lightning.data.loader import BadRecords, lost_worker
from ts_lightning.data.write import write_shards


def module(path: object, **options: object) -> ShardDataModule:
    source = ShardSource(str(path))
    return ShardDataModule(source, global_batch_size=6, micro_batch_size=3, encode=encode, pad_id=0, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_records_are_masked_up_to_the_budget(tmp_path, caplog, workers):
    broken = {i: replace(sample(i), image_bytes=[sample(i).image_bytes[0] + b"broken"]) for i in (2, 5)}
    path = write_shards([broken.get(i) or sample(i) for i in range(12)], tmp_path, "x")[0]
    lines = [f"{path}:k{i:05d}: image: seen broken bytes, expected a JPEG" for i in (2, 5)]
    data = module(path, max_bad_fraction=0.17, num_workers=workers)
    data.setup("fit")
    with caplog.at_level(logging.WARNING, "ts_lightning.data"):
        batches = [batch for _ in range(2) for batch in data.train_dataloader()]
    assert sorted(caplog.messages) == [f"bad record {line}" for line in lines]  # each once, though seen twice
    rows = [
        (valid, steps)
        for b in batches
        for m in b["micro_batches"]
        for valid, steps in zip(m["row_valid"], m["step_ids"], strict=True)
    ]
    assert [bool(valid) for valid, _ in rows].count(False) == 4
    assert all((steps == -1).all() for valid, steps in rows if not valid)
    strict = module(path, num_workers=workers)
    strict.setup("fit")
    with pytest.raises(
        ValueError, match=r"^\d bad records, expected at most 0 \(max_bad_fraction 0.0 of 12\): "
    ) as error:
        list(strict.train_dataloader())
    assert set(str(error.value).split("): ")[1].split("; ")) <= set(lines)


def test_each_source_of_a_mixture_has_a_budget_of_its_own(tmp_path, caplog):
    broken = [replace(sample(i), image_bytes=[sample(i).image_bytes[0] + b"broken"]) for i in range(20, 23)]
    sources = {"good": [sample(i) for i in range(20)], "bad": [*broken, *(sample(i) for i in range(23, 26))]}
    mix = {}
    for name, samples in sources.items():
        write_shards(samples, tmp_path, name)
        mix[name] = ShardSource(f"{tmp_path}/{name}-*.tar")

    def mixture(share):
        data = ShardDataModule(
            mix=mix, global_batch_size=4, micro_batch_size=2, encode=encode, pad_id=0, max_bad_fraction=share
        )
        data.setup("fit")
        return data

    list(mixture(0.5).train_dataloader())
    assert len(caplog.messages) == 3
    with pytest.raises(ValueError, match=r"^3 bad records, expected at most 2 \(max_bad_fraction 0.4 of 6\): "):
        list(mixture(0.4).train_dataloader())  # of all 26 it would be 10


def test_invalid_boxes_stop_the_run_before_it_starts(tmp_path, caplog):
    path = write_shards((sample(i) for i in range(12)), tmp_path, "x")[0]
    path.write_bytes(path.read_bytes().replace(b"[0.125, 0.25, 0.5, 1.0]", b"[0.125, 0.25, NaN, 1.0]", 2))
    with pytest.raises(
        ValueError, match=r"^2 bad records, expected at most 0 .*k00000: field regions\[0\].box.*; .*k00001"
    ):
        module(path).setup("fit")
    caplog.clear()
    data = module(path, max_bad_fraction=0.2)
    data.setup("fit")
    assert len([m for m in caplog.messages if "seen a box with NaN" in m]) == 2
    valid = torch.cat([m["row_valid"] for b in data.train_dataloader() for m in b["micro_batches"]])
    assert (len(valid), int(valid.sum())) == (12, 10)


def test_a_picture_that_never_decodes_is_counted_once_over_three_epochs(tmp_path, caplog):
    page = replace(sample(2), image_bytes=[b"\xff\xd8\xff<html>no picture</html>"])  # its error once named an address
    write_shards([page if i == 2 else sample(i) for i in range(8)], tmp_path, "x")

    def decoding(one: object, for_generation: bool = False) -> dict:
        inspect_image(one.image_bytes[0])
        return encode(one, for_generation)

    source = ShardSource(f"{tmp_path}/*.tar")
    data = ShardDataModule(
        source, global_batch_size=4, micro_batch_size=2, encode=decoding, pad_id=0, max_bad_fraction=0.2
    )
    data.setup("fit")
    with caplog.at_level(logging.WARNING, "ts_lightning.data"):
        for _ in range(3):
            for _ in data.train_dataloader():
                data.advance()
    assert data.state_dict()["epoch"] == 3
    assert len(caplog.messages) == 1
    assert "x-000000.tar:k00002: image: seen 26 bytes (not recognised), expected" in caplog.messages[0]


def test_a_record_counts_once_whatever_is_said_about_it():
    account, lines = BadRecords(10, 0.1), []
    for why in ("cut at 0x1", "cut at 0x2"):
        account.add([("s.tar:k", why)], lines.append)
    assert lines == ["bad record s.tar:k: cut at 0x1"]
    with pytest.raises(ValueError, match=r"^2 bad records, expected at most 1 .*: s.tar:k: cut at 0x1; s.tar:l: cut$"):
        account.add([("s.tar:l", "cut")], lines.append)


def test_a_killed_loader_process_is_one_line():
    for text in (
        "DataLoader worker (pid 12) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12) exited unexpectedly",
    ):
        line = lost_worker(RuntimeError(text))
        assert line.startswith("data: loader process 12 ")
        assert "the same command goes on from the last checkpoint" in line
    assert lost_worker(RuntimeError("CUDA error")) is None
    told = TypeError("unsupported callable")  # what inspect makes of any error
    told.__cause__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert lost_worker(told) == lost_worker(told.__cause__) is not None


def test_a_connection_between_processes_that_breaks_is_a_lost_worker() -> None:
    """And none of the network's, which passes through torch's loader where a remote shard can't be read."""
    told = []
    for where in ("torch/utils/data/dataloader.py", "urllib3/connection.py", "lib/multiprocessing/connection.py"):
        with pytest.raises(ConnectionResetError) as seen:
            exec(compile("raise ConnectionResetError(104, 'reset')", f"/x/{where}", "exec"))
        told.append(lost_worker(seen.value))
    assert told[:2] == [None, None]
    assert str(told[2]).startswith("data: loader process ended while it handed a batch over ")
