"""DeepSpeed ZeRO-2 and FSDP2 on a CUDA device give the checkpoints of a plain process; skipped where there is none."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import tiny

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SAVER = {"class_path": "ts_lightning.runs.SaveCheckpoints", "init_args": {"every_n_steps": 2, "keep": 2}}


def fit(root: Path, overlay: str | None, precision: str, *args: str) -> dict[str, Any]:
    """The last checkpoint of four steps on one GPU."""
    root.mkdir()
    given = tiny.config(tiny.write(root, tiny.MIXED), root)
    given["data"]["init_args"]["micro_batch_size"] = 4  # DeepSpeed takes one micro-batch a step
    given["trainer"] |= {"accelerator": "cuda", "gradient_clip_val": 0.1, "callbacks": [SAVER], "precision": precision}
    line = [sys.executable, "-m", "ts_lightning", "fit", "-c", tiny.save(given, root / "given.yaml")]
    line += ["-c", str(ROOT / f"configs/trainer/{overlay}.yaml")] if overlay else []
    done = subprocess.run(
        [*line, "--trainer.devices", "1", *args], env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(root / "checkpoints/step=4.ckpt", weights_only=True, map_location="cpu")


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {path: t for key, item in pairs for path, t in tensors(item, f"{name}.{key}").items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("overlay", ["deepspeed_zero2", "fsdp"])
def test_checkpoints_are_those_of_one_process(overlay: str, precision: str, tmp_path: Path) -> None:
    """The same tensors of the same shapes, fp32, without the frozen base; in fp32 the same values; resume goes on."""
    if overlay == "deepspeed_zero2":
        pytest.importorskip("deepspeed")
    plain = fit(tmp_path / "plain", None, precision)
    own = fit(tmp_path / "own", overlay, precision)
    middle = str(tmp_path / "own/checkpoints/step=2.ckpt")
    resumed = fit(tmp_path / "resumed", overlay, precision, "--ckpt_path", middle)
    for part in ("state_dict", "optimizer_states"):
        expected, seen, again = (tensors(checkpoint[part]) for checkpoint in (plain, own, resumed))
        assert expected.keys() == seen.keys() == again.keys()
        for name, value in expected.items():
            assert (value.shape, value.dtype) == (seen[name].shape, seen[name].dtype), name
            torch.testing.assert_close(again[name], seen[name], rtol=0, atol=1e-5, msg=name)
            if precision == "32-true":
                torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-4, msg=name)
