"""Unreadable records: reported once with their key, masked up to the budget, then the run stops with the list."""

import logging
from dataclasses import replace

import pytest
import torch

from tests.unit.data_samples import encode, sample
from ts_lightning.data import ShardDataModule, ShardSource
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
        ValueError, match=r"^1 bad records, expected at most 0 \(max_bad_fraction 0.0 of 12\): "
    ) as error:
        list(strict.train_dataloader())
    assert str(error.value).split("): ")[1] in lines


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
