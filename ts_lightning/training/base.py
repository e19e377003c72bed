"""What every LightningModule of the project shares. Shapes: B rows of a micro-batch."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed

from ts_lightning.losses import RowLoss, expert_load, num_loss_rows
from ts_lightning.metrics.protocols import DEFAULTS, make_default, make_protocol
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.suites import SuiteMetrics
from ts_lightning.models.generate import generate_answers
from ts_lightning.models.ranks import several
from ts_lightning.models.vlm import VLM
from ts_lightning.runs.ask import Reply, ask
from ts_lightning.runs.fsdp2 import ShardedModule
from ts_lightning.runs.nonfinite import SkipNonFinite
from ts_lightning.runs.package_state import pack, stored_hparams, unpack
from ts_lightning.training.callbacks import DataPosition, Throughput
from ts_lightning.training.optimizer import build_optimizer, build_schedule, keep_numbers, own_numbers, without_exchange
from ts_lightning.training.records import answer_lengths, batch_records
from ts_lightning.training.schedule import WarmupCosine, planned_steps
from ts_lightning.training.silence import StopWithoutGradient

log = logging.getLogger(__name__)
NEVER = 2**62  # epochs
AVERAGES = {
    WeightAveraging: "it averages frozen weights, codes and token ids, too, and checkpoints hold what trains alone",
    StochasticWeightAveraging: "its average comes after the last checkpoint is written, and is in none",
}


class BaseModule(ShardedModule):
    """Wires a vlm, an optimizer and a schedule; subclasses set `loss`, or say otherwise what `row_losses` are.

    One Lightning batch is one optimizer step (`training_step`). The loss is the sum over rows divided by the global
    batch's `loss_weight`. Hyperparameters are stored as plain values, so `ts_lightning.runs.load(path)` rebuilds the
    module; an argument that can't be stored is refused here with a ValueError.

    Args:
        vlm: What trains.
        optimizer: Over the parameters that train, in the groups of `training.optimizer`.
        lr_scheduler: Steps once for each optimizer step; ReduceLROnPlateau once for each validation.
        alpha_lr_factor: The rate of a twin vlm's alpha is multiplied by it.
        max_new_tokens: Longest answer in validate, test and predict.
        constrain: There, a begun box is always finished as the codec writes it (`models.constrain`).
    """

    loss: RowLoss
    row_record: list[tuple[Any, Tensor]]  # of this step, for SkipNonFinite: samples and the losses of their rows
    routed_LE: list[Tensor]  # of this step: how often each router that trains chose each of its experts

    def __init__(
        self,
        vlm: VLM,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable = WarmupCosine,
        alpha_lr_factor: float = 1.0,
        max_new_tokens: int = 64,
        constrain: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.strict_loading = False  # checkpoints hold what trained; `unpack` checks them instead
        self.vlm = vlm
        self.make_optimizer, self.make_scheduler = optimizer, lr_scheduler
        self.alpha_lr_factor, self.max_new_tokens = alpha_lr_factor, max_new_tokens
        self.suite_metrics, self.routed_LE = SuiteMetrics(), []
        self.constrain = constrain
        self._own_numbers: list[dict[str, Any]] = []  # of the optimizer, as it was made
        self._measured: set[str] = set()  # suites whose true answers were held against max_new_tokens
        self.answer_as()

    def answer_as(self, task: str = "given", alpha: float | None = None, constrain: bool | None = None) -> None:
        """Whose task, and which mixing weight, answers take in validate, test and predict, and whether constrained.

        task: as in `VLM.encoder_for`; alpha: in place of the learned one; constrain: in place of the argument.
        ValueError for what the vlm doesn't have.
        """
        self.constrain = self.constrain if constrain is None else constrain
        self.vlm.check_alpha(alpha)
        self.encoder, self.alpha = self.vlm.encoder_for(task), alpha  # the datamodule asks for the encoder

    def ask(self, images: Any, question: str, task: str = "auto", max_new_tokens: int | None = None) -> Reply:
        """The answer to a question about a picture or several (`runs.ask`); lists of both have `runs.ask.ask`."""
        return ask(self.vlm, images, question, task, max_new_tokens or self.max_new_tokens)

    def row_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss of each row, [B] with gradient under "loss"; other [B] entries are parts of it, for the logs."""
        output = self.vlm(batch, isolated=self.loss.isolated)
        self.count_experts(output["expert_ids"])
        return self.loss(output, batch)

    def count_experts(self, expert_ids: Sequence[Tensor]) -> None:
        """Add up how often each expert of each trainable router was chosen in this step, for the logs."""
        for routed_E, ids_NK in zip(self.routed_LE, expert_ids, strict=False):  # none in understanding rows
            routed_E += torch.bincount(ids_NK.flatten(), minlength=len(routed_E))

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """What a micro-batch adds to the loss's divisor: its rows with a loss token."""
        return num_loss_rows(batch["step_ids"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One optimizer step: forward and backward of each micro-batch in turn, gradients added up.

        The backward of the last one is Lightning's: what follows it (exchange between ranks, clipping, the step) stays
        the trainer's, with all of its options. That is why this is not manual optimisation, which refuses
        `gradient_clip_val` and leaves precision and strategies to the module.
        """
        *earlier, last = batch["micro_batches"]
        counts = torch.stack([self.loss_weight(micro) for micro in batch["micro_batches"]])
        divisor = self._sum_over_ranks(counts.sum()).clamp(min=1)
        self.row_record, totals = [], dict[str, Tensor]()
        self.routed_LE = [torch.zeros(len(moe.experts), device=self.device).double() for moe in self.vlm.routers()]
        self.zero_grad()
        for micro in earlier:
            with without_exchange(self.trainer.strategy):
                loss = self._share(micro, divisor, totals)
                with torch.autocast(self.device.type, enabled=False):
                    self.trainer.strategy.backward(loss, None)
        loss = self._share(last, divisor, totals)
        sums, *routed_LE = self._sum_over_ranks(torch.cat([torch.stack(list(totals.values())), *self.routed_LE])).split(
            [len(totals), *map(len, self.routed_LE)]
        )
        if any(bool(routed_E.any()) for routed_E in routed_LE):
            self.log("train/expert_load", expert_load(routed_LE).float(), batch_size=1)
        for name, mean in zip(totals, sums / divisor, strict=True):
            self.log(f"train/{name}", mean.float(), prog_bar=name == "loss", batch_size=1)
        for name, value in self.vlm.log_values().items():
            self.log(f"train/{name}", float(value), prog_bar=True, batch_size=1)
        return loss

    def _share(self, micro: dict[str, Any], divisor: Tensor, totals: dict[str, Tensor]) -> Tensor:
        """What a micro-batch adds to the step's loss; `totals` adds up the sums over rows, for the logs."""
        rows = self.row_losses(micro)
        self.row_record.append((micro["samples"], rows["loss"].detach()))
        for name, values_B in rows.items():
            totals[name] = totals.get(name, 0) + values_B.detach().sum().double()
        # gradients are averaged over ranks, and the divisor is already global
        return rows["loss"].sum() * (self.trainer.world_size / divisor)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Does nothing: the closure calls it between the last forward and its backward; `training_step` zeroes."""

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        value = value.to(self.device)
        if several():  # `strategy.reduce` waits at a barrier first
            distributed.all_reduce(value)
        return value

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.make_optimizer, self, self.alpha_lr_factor)
        self._own_numbers = own_numbers(optimizer)
        scheduler = build_schedule(self.make_scheduler, optimizer, self.alpha_lr_factor)
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            scheduler.total_steps = planned_steps(self.trainer)
        wired: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):  # `on_validation_epoch_end` steps it, Lightning never does
            wired = {"scheduler": scheduler, "interval": "epoch", "frequency": NEVER, "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": wired}

    def configure_callbacks(self) -> list[Callback]:
        """Ours that are not among the trainer's. ValueError for one that averages weights, before it copies them."""
        callbacks = getattr(self.trainer, "callbacks")  # noqa: B009
        if self.trainer.state.fn == TrainerFn.FITTING:
            _check_averages(callbacks)
        given = {type(callback) for callback in callbacks}
        own = [DataPosition(), Throughput(), StopWithoutGradient(), SkipNonFinite()]
        return [callback for callback in own if type(callback) not in given]

    def setup(self, stage: str) -> None:
        """Give the weights their dtypes.

        ValueError for weights in 16 bits that train by themselves: a step of 2e-5 is lost in one of 8 bits. So for
        Lightning's accumulation: `training_step` has its own, and would lose the gradients of earlier batches.
        """
        self._hold_dtypes()
        if stage == "fit":
            self._check_accumulation()
            self._check_precision()

    def _hold_dtypes(self) -> None:
        """In mixed precision what trains, and so AdamW's states, is fp32; with bf16-mixed what is frozen is bf16."""
        if (precision := str(self.trainer.precision)) not in ("bf16-mixed", "16-mixed"):
            return
        for parameter in filter(torch.is_floating_point, self.vlm.parameters()):
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
            elif precision == "bf16-mixed":
                parameter.data = parameter.data.to(torch.bfloat16)

    def _check_precision(self) -> None:
        precision = str(self.trainer.precision)
        held = {parameter.dtype for parameter in self.vlm.parameters() if parameter.requires_grad}
        if precision == "32-true" and (narrow := held & {torch.bfloat16, torch.float16}):
            kinds = ", ".join(sorted(map(str, narrow)))
            seen = f"seen 32-true (the default) where {kinds} weights train, in which small steps are lost"
            raise ValueError(f"trainer.precision: {seen}, expected bf16-mixed: what trains is fp32 then")
        if precision in ("bf16-true", "16-true") and self.trainer.is_global_zero:
            log.warning(
                f"trainer.precision: seen {precision}: what trains is held in 16 bits, where a step of less than 1/512 "
                "(bf16) or 1/4096 (fp16) of a weight is lost; with bf16-mixed it is held in fp32"
            )

    def _check_accumulation(self) -> None:
        factors = [self.trainer.accumulate_grad_batches]
        for callback in getattr(self.trainer, "callbacks"):  # noqa: B009
            if isinstance(callback, GradientAccumulationScheduler):
                factors += callback.scheduling.values()
        if (seen := max(factors)) != 1:
            instead = "data.global_batch_size is one step's, data.micro_batch_size what is in memory at once"
            raise ValueError(f"trainer.accumulate_grad_batches: seen {seen}, expected 1 ({instead})")

    def on_fit_start(self) -> None:
        self.train()  # pre-trained parts arrive in eval mode; the vlm keeps what is frozen there

    def on_train_start(self) -> None:
        """Weight decay, betas and eps are the configuration's, also where a checkpoint was restored."""
        for optimizer in self.trainer.optimizers if self._own_numbers else []:
            keep_numbers(optimizer, self._own_numbers)

    def on_validation_model_train(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.train()  # Lightning's own restoring goes past vlm.train

    def on_validation_epoch_start(self) -> None:
        self.suite_metrics.reset()

    def on_validation_start(self) -> None:
        self._check_rules()

    def on_test_epoch_start(self) -> None:
        self.suite_metrics.reset()
        self._check_rules()

    def on_predict_start(self) -> None:
        self._check_rules()

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Record]]:
        """The records of the answers, for callbacks; they are scored here."""
        records = self._answered(batch, dataloader_idx)
        self.suite_metrics.update(self._suite(dataloader_idx), records)
        return {"records": records}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        kind = "test" if self.trainer.testing else "val"
        scores = {f"{kind}/{key}": value for key, value in self.suite_metrics.compute(self.device).items()}
        self.log_dict(scores)
        plateau = self.lr_schedulers() if self.trainer.state.fn == TrainerFn.FITTING else None
        if isinstance(plateau, ReduceLROnPlateau):
            if plateau.monitor not in scores:
                expected = ", ".join(scores)
                raise ValueError(f"lr_scheduler.monitor: seen {plateau.monitor!r}, expected one of {expected}")
            if not self.trainer.sanity_checking:
                plateau.step(float(scores[plateau.monitor]))  # before any checkpoint of this validation is written

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """The record of each question as plain values, which `Record.from_json` reads: Lightning walks through them."""
        return [record.to_json() for record in self._answered(batch, dataloader_idx)]

    def _answered(self, batch: dict[str, Any], dataloader_idx: int) -> list[Record]:
        suite = self._suite(dataloader_idx)
        answers = self.vlm.run(generate_answers, batch, self.max_new_tokens, self.alpha, self.constrain)
        texts, cut_off = [answer.text for answer in answers], [answer.cut_off for answer in answers]
        return batch_records(batch, texts, self.vlm.codec, suite, cut_off, self._rule(suite))

    def _check_rules(self) -> None:
        """Before anything is generated: protocols and readings are known, and true answers fit `max_new_tokens`."""
        for suite in self._suites():
            rule = self._rule(suite)
            make = make_protocol if rule["protocol"] else make_default
            make(rule["protocol"] or DEFAULTS[0], rule["reading"], rule["annotations"])
            if suite not in self._measured and self.trainer.is_global_zero:
                self._measured.add(suite)
                self._measure(suite)

    def _measure(self, suite: str) -> None:
        """Say which share of a suite's own true answers (of its first 100) would be cut off."""
        questions = self.trainer.datamodule.suite_questions(self._kind, suite, 100)  # type: ignore[attr-defined]
        lengths = answer_lengths(self.vlm.encoder, questions)
        longer = sum(length > self.max_new_tokens for length in lengths)
        if longer:
            log.warning(
                f"suite {suite}: seen true answers of up to {max(lengths)} tokens, expected at most max_new_tokens "
                f"{self.max_new_tokens}: {longer} of the first {len(lengths)} can't be answered whole"
            )

    def _rule(self, suite: str) -> dict[str, str | None]:
        """How a suite is scored by its YAML."""
        source = self._suites().get(suite)
        return {name: getattr(source, name, None) for name in ("protocol", "reading", "annotations")}

    @property
    def _kind(self) -> str:
        return "test" if self.trainer.testing else "predict" if self.trainer.predicting else "val"

    def _suites(self) -> dict[str, Any]:
        """The sources of this stage's suites by name; {} of a datamodule that is not ours."""
        return getattr(self.trainer.datamodule, "suites", {}).get(self._kind, {})  # type: ignore[attr-defined]

    def _suite(self, dataloader_idx: int) -> str:
        names = [*self._suites()]
        return names[dataloader_idx] if names else str(dataloader_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pack(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        unpack(self, checkpoint)

    def _set_hparams(self, hp: Any) -> None:
        """Called by save_hyperparameters: what is stored is plain, with the CLI and without it."""
        super()._set_hparams(stored_hparams(hp))


def _check_averages(callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        for kind, why in AVERAGES.items():
            if isinstance(callback, kind):
                instead = "the mean of the state_dict of several checkpoints is an average of what trains"
                raise ValueError(f"trainer.callbacks: seen {type(callback).__name__}, expected none: {why} ({instead})")
