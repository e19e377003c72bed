"""Torture item 10 in shards, small, and that it would notice."""

import logging
import os
from pathlib import Path
from unittest.mock import ANY

import pytest

from tests.reliability import stored_images
from tests.unit.data_samples import shards
from ts_lightning.data import index_shards, reader


def test_boxes_lie_on_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"exif_pictures": 24, "worst_iou": 1.0}
    assert stored_images.boxes_on_turned_pictures(tmp_path / "right") == figures
    monkeypatch.setitem(stored_images._STORED, 6, 4)  # turned the other way
    with pytest.raises(AssertionError):
        stored_images.boxes_on_turned_pictures(tmp_path / "wrong")


def test_changed_bytes_are_never_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored_images.changed_after_indexing(tmp_path / "a", 20)["silent"] == 0
    monkeypatch.setattr(reader, "crc32", lambda data: ANY)  # equal to every checksum
    with pytest.raises(AssertionError, match="'in_a_run': 0, 'next_run': 0, 'manifest': 20"):
        stored_images.changed_after_indexing(tmp_path / "b", 20)


def test_a_tar_with_other_bytes_and_another_time_is_not_indexed_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shards(tmp_path, [2])[0]
    index_shards(path)
    path.write_bytes(path.read_bytes().replace(b"Step 1", b"Step 2"))
    os.utime(path, ns=(1, 1))
    with caplog.at_level(logging.WARNING, "ts_lightning.data"):
        index_shards(path)
        index_shards(path)
    assert caplog.messages == [f"{path}: seen other bytes than when it was indexed; indexed anew, as it is now"]
