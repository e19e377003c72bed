import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

from ts_lightning.models.package import file_sha256
from ts_lightning.runs.checkpoint_io import CheckpointIO, sidecar, sidecar_sums

STATE = {"state_dict": {"w": torch.arange(5.0)}, "epoch": 3}


def test_round_trip_and_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.ckpt", "a.ckpt.sha256"]
    loaded = CheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], STATE["state_dict"]["w"])  # what was written
    check = subprocess.run(["sha256sum", "-c", sidecar(path).name], cwd=path.parent, capture_output=True)
    assert check.returncode == 0


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    before = file_sha256(path)

    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        CheckpointIO().save_checkpoint({**STATE, "epoch": 4}, path)
    assert file_sha256(path) == before
    assert CheckpointIO().load_checkpoint(path)["epoch"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.sha256"]


def test_a_loader_process_that_dies_during_a_save_is_not_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(torch, "save", died)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"):
        CheckpointIO().save_checkpoint(STATE, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_crash_between_renames_leaves_a_file_that_verifies(
    crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing a checkpoint takes three renames: sidecar with both sums, checkpoint, sidecar with the new one."""
    path = tmp_path / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    calls, real = [0], os.replace

    def replace(*args: str) -> None:
        calls[0] += 1
        if calls[0] == crash_at:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        CheckpointIO().save_checkpoint({**STATE, "epoch": 4}, path)
    assert CheckpointIO().load_checkpoint(path)["epoch"] == (3 if crash_at < 3 else 4)


def test_old_sum_is_forgotten_after_a_save(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for epoch in (1, 2):
        CheckpointIO().save_checkpoint({**STATE, "epoch": epoch}, path)
    assert sidecar_sums(path) == [file_sha256(path)]


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    data = path.read_bytes()
    for size in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"checkpoint {path}: truncated"):
            CheckpointIO().load_checkpoint(path)


def test_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="changed since it was saved"):
        CheckpointIO().load_checkpoint(path)


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": Evil()}, "evil.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.ckpt", "raw.ckpt"):
        with pytest.raises(ValueError, match=name):
            CheckpointIO().load_checkpoint(name, weights_only=False)
    assert not (tmp_path / "evil").exists()


def test_other_files_are_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"weights": 1}, tmp_path / "dict.ckpt")
    with pytest.raises(ValueError, match=r"list.ckpt: seen list, expected a training checkpoint"):
        CheckpointIO().load_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"dict.ckpt: seen keys \['weights'\]"):
        CheckpointIO().load_checkpoint(tmp_path / "dict.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no\.ckpt: no such file"):
        CheckpointIO().load_checkpoint(tmp_path / "no.ckpt")


def test_remove(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    CheckpointIO().save_checkpoint(STATE, path)
    CheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []
