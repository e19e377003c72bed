"""TWIST: stepwise fine-tuning of a twin-expert vlm."""

from typing import Any

from ts_lightning.losses import Stepwise
from ts_lightning.models.vlm import VLM
from ts_lightning.training.base import BaseModule


class StepwiseSFT(BaseModule):
    """`SFT` with the loss of TWIST eq. 8, `ts_lightning.losses.Stepwise`.

    Args:
        vlm: What trains.
        step_loss: "sum" (ordinary cross-entropy over the row) or "step_mean" (each step by its own length).
        balance_coeff: Weight of the routers' balance loss R(g).
        isolated: A step sees image, question and itself only.
        first_choice: R(g) counts each token's first expert alone (DeepSpeed's form); matters from `top_k` 2 on.
        kwargs: As in `BaseModule`.
    """

    def __init__(
        self,
        vlm: VLM,
        step_loss: str = "step_mean",
        balance_coeff: float = 0.01,
        isolated: bool = False,
        first_choice: bool = False,
        **kwargs: Any,
    ) -> None:
        if step_loss == "isolated":  # as checkpoints of earlier versions have it
            step_loss, isolated = "sum", True
        loss = Stepwise(step_loss, balance_coeff, isolated, first_choice)
        super().__init__(vlm, **kwargs)
        self.loss = loss
