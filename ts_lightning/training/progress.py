"""The line that says where a run is: step, epoch, loss, reward, alpha, speed."""

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

EVERY = 30.0  # seconds between lines where nobody watches: a log file is no terminal


class Progress(ProgressBar):
    """One line that a terminal overwrites; in a log file a line every `EVERY` seconds, and the last one.

    It shows what the module logs with `prog_bar=True`, by whole names without `train/`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream or sys.stdout
        self.enabled, self.shown, self.began, self.first = True, 0.0, 0.0, 0
        self.line = ""

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = list(pl_module.parameters())
        every, trains = (sum(p.numel() for p in parameters if p.requires_grad or not t) for t in (False, True))
        self.print(f"{type(pl_module.vlm).__name__}: {every:,} parameters, {trains:,} of them train")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, steps, epochs = trainer.global_step, trainer.max_steps, trainer.max_epochs
        known = str(epochs) if epochs is not None and epochs > 0 else "?"
        speed = (step - self.first) / max(time.monotonic() - self.began, 1e-9)
        parts = [
            f"step {step}" + (f" of {steps}" if steps > 0 else ""),
            f"epoch {trainer.current_epoch + 1} of {known}",
            *(f"{name} {value}" for name, value in self.figures(trainer, pl_module)),
            f"{speed:.2f} steps/s",
        ]
        self.show(", ".join(parts), last=step == steps)

    def figures(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[tuple[str, str]]:
        """What the module wants to be seen, by name."""
        found = self.get_metrics(trainer, pl_module)
        named = {name.removeprefix("train/").removesuffix("/total"): value for name, value in found.items()}
        return [(n, f"{v:.3f}" if isinstance(v, float) else str(v)) for n, v in named.items() if n != "v_num"]

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *at: int
    ) -> None:
        if trainer.sanity_checking:
            self.evaluated("sanity check", trainer.num_sanity_val_batches, batch_idx, *at)
        else:
            self.evaluated("validation", trainer.num_val_batches, batch_idx, *at)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *at: int
    ) -> None:
        self.evaluated("test", trainer.num_test_batches, batch_idx, *at)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *at: int
    ) -> None:
        self.evaluated("predict", trainer.num_predict_batches, batch_idx, *at)

    def evaluated(self, word: str, batches: Sequence[int | float], batch: int, suite: int = 0) -> None:
        """Say which batch of which suite has been answered; `batches` has the number of each."""
        where = f" suite {suite + 1} of {len(batches)}," if len(batches) > 1 else ""
        last = (suite + 1, batch + 1) == (len(batches), batches[suite])
        self.show(f"{word}:{where} batch {batch + 1} of {batches[suite]}", last)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.end()

    def show(self, line: str, last: bool) -> None:
        """Put a line in the place of the last one; in a file now and then."""
        if not self.enabled or not self.trainer.is_global_zero:
            return
        if self.stream.isatty():
            self.stream.write(f"\r{line:<{len(self.line)}}")
            self.line = line
        elif last or time.monotonic() - self.shown >= EVERY:
            self.stream.write(line + "\n")
            self.shown = time.monotonic()
        self.stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.line:
            self.stream.write("\n")
            self.line = ""

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.enabled and self.trainer.is_global_zero:
            self.end()
            print(*args, file=self.stream)
