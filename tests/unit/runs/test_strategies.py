"""What the strategies set and refuse before they run."""

import lightning as L
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

from ts_lightning.runs.fsdp2 import FSDP2Strategy
from ts_lightning.runs.zero2 import ZeRO2Strategy


def test_no_loop_answers_in_inference_mode_under_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    """On gloo Lightning leaves that mode by itself, so two CPU processes can't show it."""
    monkeypatch.setattr(ModelParallelStrategy, "setup", lambda self, trainer: None)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    assert [loop.inference_mode for loop in loops] == [False, True, True, True]
    FSDP2Strategy().setup(trainer)
    assert not any(loop.inference_mode for loop in loops)


def test_zero2_refuses_to_offload() -> None:
    with pytest.raises(ValueError, match="seen offload_optimizer, expected none"):
        ZeRO2Strategy(offload_optimizer=True)
