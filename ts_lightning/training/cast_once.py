"""A callback under which a step casts what trains once (`models.working_copies`)."""

from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback

from ts_lightning.models.moe import MoE
from ts_lightning.models.working_copies import WorkingCopies


class CastOnce(Callback):
    """Under `bf16-mixed`, experts' fp32 weights are cast once a step, the same bits; two bytes more for each."""

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        _give(pl_module, WorkingCopies())

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        _give(pl_module, None)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        _give(pl_module, None)

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        _give(pl_module, None)


def _give(module: LightningModule, copies: WorkingCopies | None) -> None:
    for moe in module.modules():
        if isinstance(moe, MoE):
            moe.working_copies = copies
