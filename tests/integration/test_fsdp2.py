"""FSDP2 on two processes is DDP on two processes: weights, optimizer, checkpoints, skipped steps, GRPO.

Bitwise: the same steps, their shapes, rows and order alike, and weights that are copied.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks
from tests.integration import fsdp2_runs, tiny
from tests.integration.test_ddp import rows
from ts_lightning.cli import main
from ts_lightning.runs.load import load


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of `fsdp2_runs`, by name."""
    folder = tmp_path_factory.mktemp("fsdp2")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TS_LIGHTNING_CLASS_PREFIXES", "tests.integration.test_grpo")
        ranks.finish(partial(fsdp2_runs.main, folder), folder / "log", seconds=400)
    return folder


def checkpoint(root: Path, step: int) -> dict[str, Any]:
    return torch.load(root / f"checkpoints/step={step}.ckpt", weights_only=True)


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in a checkpoint's part, by path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {path: t for key, item in pairs for path, t in tensors(item, f"{name}.{key}").items()}


def assert_close(a: dict[str, Any], b: dict[str, Any], atol: float = 1e-6) -> None:
    for part in ("state_dict", "optimizer_states"):
        expected, seen = tensors(a[part]), tensors(b[part])
        assert list(expected) == list(seen)
        assert expected
        for name, value in expected.items():
            assert type(seen[name]) is torch.Tensor
            torch.testing.assert_close(seen[name], value, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def test_each_rank_holds_its_part_alone(runs: Path) -> None:
    """In training every weight, gradient and optimizer state is a part; only alpha, a scalar, is whole."""
    held = [torch.load(runs / f"nan/step-2-{rank}.pt") for rank in (0, 1)]
    sizes = held[0]["sizes"]
    for name, (count, sharded) in sizes.items():
        assert sharded != name.endswith("alpha.value"), name
        parts = [one["parts"][name].numel() for one in held]
        assert sum(parts) == (count if sharded else 2), name
    assert sum(part.numel() for part in held[0]["parts"].values()) < 0.6 * sum(count for count, _ in sizes.values())


def test_weights_and_optimizer_equal_ddps(runs: Path) -> None:
    ddp, fsdp2 = (checkpoint(runs / name, 4) for name in ("ddp", "fsdp"))
    assert_close(ddp, fsdp2)
    start = checkpoint(runs / "ddp", 2)["state_dict"]
    assert all(not torch.equal(value, start[name]) for name, value in ddp["state_dict"].items())
    assert ddp.keys() == fsdp2.keys()
    for part in ("base", "versions", "lr_schedulers", "ShardDataModule"):
        assert ddp[part] == fsdp2[part], part
    assert ddp["optimizer_states"][0]["param_groups"] == fsdp2["optimizer_states"][0]["param_groups"]


@pytest.mark.parametrize("name", ["", "lora_", "plain_", "rank_", "grpo_twin_", "grpo_plain_"])
def test_losses_equal_ddps(name: str, runs: Path) -> None:
    ddp, fsdp2 = (rows(runs / (name + strategy) / "metrics.csv") for strategy in ("ddp", "fsdp"))
    names = [n for n in ddp[0] if n.startswith("train/") and tiny.steady(n)]
    assert "train/loss" in names
    assert len(ddp) == len(fsdp2) >= 2
    for a, b in zip(ddp, fsdp2, strict=True):
        assert [n for n in names if b[n]] == [n for n in names if a[n]]
        assert [float(b[n]) for n in names if a[n]] == pytest.approx([float(a[n]) for n in names if a[n]], abs=1e-6)


def test_resume_equals_the_run_that_nothing_disturbed(runs: Path) -> None:
    whole, resumed = (checkpoint(runs / name, 4) for name in ("fsdp", "resumed"))
    for part in ("state_dict", "optimizer_states"):
        seen = tensors(resumed[part])
        assert all(torch.equal(value, seen[name]) for name, value in tensors(whole[part]).items())
    assert rows(runs / "resumed/metrics.csv")[-1]["train/loss"] == rows(runs / "fsdp/metrics.csv")[-1]["train/loss"]


@pytest.mark.parametrize("name", ["three_ranks", "one_process"])
def test_other_ranks_and_strategies_go_on_from_it(name: str, runs: Path) -> None:
    """Three ranks of FSDP2 from DDP's checkpoint, one plain process from that of FSDP2."""
    assert_close(checkpoint(runs / "ddp", 4), checkpoint(runs / name, 4))


def test_it_loads_and_exports_as_ddps(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs / "fsdp/checkpoints/step=4.ckpt"
    stored = checkpoint(runs / "fsdp", 4)["state_dict"]
    vlm = load(path).vlm
    assert {f"vlm.{name}" for name in vlm.trainable_state_dict()} == stored.keys()
    assert all(torch.equal(value, stored[f"vlm.{name}"]) for name, value in vlm.trainable_state_dict().items())
    assert len(stored) < len(vlm.state_dict())
    line = ["export", "--ckpt", str(path), "--to", "package", "--out", str(tmp_path / "package")]
    assert main(line) == 0
    again = load(tmp_path / "package").vlm.trainable_state_dict()
    assert all(torch.equal(value, again[name]) for name, value in vlm.trainable_state_dict().items())


def test_a_nan_on_one_rank_skips_the_step_on_both(runs: Path) -> None:
    for rank in (0, 1):
        zero, before, after = (torch.load(runs / f"nan/step-{step}-{rank}.pt")["parts"] for step in range(3))
        assert any(not torch.equal(value, zero[name]) for name, value in before.items())
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    steps = [row for row in rows(runs / "nan/metrics.csv") if row["train/loss"]]
    assert [row["train/skipped_steps"] for row in steps] == ["0.0", "1.0", "1.0"]


def test_ranks_stop_generating_together(runs: Path) -> None:
    """Rank 0's answers end at once, those of rank 1 never: both ranks run as many forwards as the limit allows."""
    assert [json.loads((runs / f"nan/forwards-{rank}.json").read_text()) for rank in (0, 1)] == [6, 6]


@pytest.mark.parametrize("name", ["lora", "plain", "rank", "grpo_twin", "grpo_plain"])
def test_other_vlms_equal_ddps(name: str, runs: Path) -> None:
    """LoRA; all weights, recomputed in backward, with no picture on rank 1; GRPO with both references.

    "rank": low rank on packed rows, gradients exchanged once a step.
    """
    ddp, fsdp2 = (checkpoint(runs / f"{name}_{strategy}", 2) for strategy in ("ddp", "fsdp"))
    assert_close(ddp, fsdp2)
    if name == "grpo_twin":
        expected, seen = tensors(ddp["reference"]), tensors(fsdp2["reference"])
        assert expected
        assert expected.keys() == seen.keys()
        assert all(torch.equal(value, seen[key]) for key, value in expected.items())
    elif name == "grpo_plain":
        assert ddp["reference"] == fsdp2["reference"]
