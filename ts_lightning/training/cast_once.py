"""A callback under which a step casts what trains once (`models.working_copies`)."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from ts_lightning.models.working_copies import hold_copies


class CastOnce(Callback):
    """Under `bf16-mixed`, experts' fp32 weights are cast once a step, the same bits; two bytes more for each."""

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        hold_copies(True)

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        hold_copies(False)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        hold_copies(False)

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        hold_copies(False)
