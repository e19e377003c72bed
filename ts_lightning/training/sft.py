"""Supervised fine-tuning: any vlm, any loss of rows."""

from typing import Any

from ts_lightning.losses import RowLoss, TokenMean
from ts_lightning.models.vlm import VLM
from ts_lightning.training.base import BaseModule


class SFT(BaseModule):
    """Trains what the vlm lets train, by the loss that is given.

    `PlainVLM(train=[...])` takes glob patterns of parameter names: ["*"] is full fine-tuning.

    Args:
        vlm: What trains.
        loss: Of a row; None is the mean over its answer tokens (`ts_lightning.losses.TokenMean`).
        kwargs: As in `BaseModule`.
    """

    def __init__(self, vlm: VLM, loss: RowLoss | None = None, **kwargs: Any) -> None:
        super().__init__(vlm, **kwargs)
        self.loss = loss or TokenMean()
