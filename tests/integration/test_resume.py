"""A run that was broken off and started again ends as one that was not: weights, optimizer, metrics, bit for bit.

The shapes, rows and order of all products are the same.
"""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.runs import CheckpointIO
from ts_lightning.training import BaseModule

STEPS = 8
MODEL_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put signal handlers and the environment back after each run."""
    monkeypatch.setenv("WANDB_RUN_ID", "test")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def config(shards: str, root: Path) -> dict[str, Any]:
    given = tiny.config(shards, root)
    saver = {"every_n_steps": 2, "keep": 2}
    given["trainer"] |= {"max_steps": STEPS, "limit_val_batches": 1.0}
    given["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": 2}
    given["trainer"]["callbacks"] = [{"class_path": "ts_lightning.runs.SaveCheckpoints", "init_args": saver}]
    return given


def fit(shards: str, root: Path, *args: str) -> int:
    root.mkdir(exist_ok=True)
    return main(["fit", "-c", tiny.save(config(shards, root), root / "given.yaml"), *args])


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if tiny.steady(k)} for row in csv.DictReader(file)]


def last(root: Path) -> dict[str, Any]:
    return torch.load(root / f"checkpoints/step={STEPS}.ckpt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def assert_equal_runs(root: Path, whole: Path) -> None:
    a, b = last(root), last(whole)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "ShardDataModule", "global_step"):
        assert same(a[part], b[part]), part
    assert rows(root) == rows(whole)


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    root = tmp_path_factory.mktemp("whole")
    assert fit(shards, root) == 0
    return root


def disturb(monkeypatch: pytest.MonkeyPatch, name: str, call: int, action: Any) -> None:
    """Run `action` at the given call of a BaseModule method."""
    real, calls = getattr(BaseModule, name), [0]

    def method(self: BaseModule, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            action()
        return real(self, *args)

    monkeypatch.setattr(BaseModule, name, method)


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


@pytest.mark.parametrize(("method", "call", "steps"), [("training_step", 6, 4), ("validation_step", 6, 4)])
def test_a_crashed_run_goes_on_with_the_same_command(
    shards: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    method: str,
    call: int,
    steps: int,
) -> None:
    """Step 4 has a checkpoint and a validation after it; the second case crashes inside that validation."""
    with monkeypatch.context() as patch:
        disturb(patch, method, call, crash)
        with pytest.raises(Crash):
            fit(shards, tmp_path)
    leftover = tmp_path / "checkpoints/.step=4.ckpt.x.tmp"
    leftover.write_bytes(b"half")
    assert fit(shards, tmp_path) == 0
    assert f"step={steps}.ckpt after step {steps}" in capsys.readouterr().out
    assert not leftover.exists()
    assert_equal_runs(tmp_path, whole)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["step=6.ckpt", "step=8.ckpt"]  # keeps the last two, over the restart


@pytest.mark.parametrize(
    ("method", "call", "number", "steps"),
    [
        ("training_step", 1, signal.SIGUSR1, 1),
        ("row_losses", 6, signal.SIGTERM, 3),  # the second micro-batch of step 3
        ("validation_step", 6, signal.SIGUSR1, 4),
        ("on_save_checkpoint", 3, signal.SIGTERM, 6),
    ],
)
def test_a_signal_saves_the_step_and_exits(
    shards: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    method: str,
    call: int,
    number: int,
    steps: int,
) -> None:
    cls: Any = BaseModule
    if method == "row_losses":
        from ts_lightning.training import StepwiseSFT as cls
    real, calls = getattr(cls, method), [0]

    def send(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(cls, method, send)
        with pytest.raises(SystemExit) as stop:
            fit(shards, tmp_path)
    assert stop.value.code == 128 + number
    assert f"stopped.ckpt after step {steps}, stopping" in capsys.readouterr().out
    assert fit(shards, tmp_path) == 0
    assert_equal_runs(tmp_path, whole)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone(shards: str, whole: Path, capsys: Any) -> None:
    before = contents(whole)
    for _ in range(2):
        assert fit(shards, whole) == 0
        assert "step=8.ckpt holds the last step, 8; nothing was changed" in capsys.readouterr().out
        assert contents(whole) == before


def test_a_run_that_early_stopping_ended_is_left_alone(shards: str, tmp_path: Path, capsys: Any) -> None:
    """The second validation has no better score: nothing after step 4 of 8."""
    given = config(shards, tmp_path)
    given["model"]["init_args"]["optimizer"]["init_args"] = {"lr": 0.0}
    stop = {"monitor": "val/toy/miou", "mode": "max", "patience": 1}
    given["trainer"]["callbacks"].append({"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop})
    command = ["fit", "-c", tiny.save(given, tmp_path / "given.yaml")]
    assert main(command) == 0
    before = contents(tmp_path)
    assert "checkpoints/step=4.ckpt" in before
    assert main(command) == 0
    assert "step=4.ckpt holds the last step, 4; nothing was changed" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_last_validation_that_was_cut_off_is_made_up_for(
    shards: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disturb(patch, "validation_step", 4 * 4, crash)  # the last batch of the last of four validations
        with pytest.raises(Crash):
            fit(shards, tmp_path)
    assert last(tmp_path)["global_step"] == STEPS
    assert fit(shards, tmp_path) == 0
    assert_equal_runs(tmp_path, whole)
    before = contents(tmp_path)
    assert fit(shards, tmp_path) == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("every", [2, 3])
def test_a_last_validation_is_made_up_for_from_a_file_of_lightning(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, every: int
) -> None:
    """Four steps, saved by ModelCheckpoint before their validation; with one every three steps the last has none."""
    given = config(shards, tmp_path)
    saver = {"every_n_train_steps": 2, "filename": "{step}"}
    given["trainer"] |= {"max_steps": 4, "val_check_interval": every, "limit_val_batches": 1}
    given["trainer"]["callbacks"] = [{"class_path": MODEL_CHECKPOINT, "init_args": saver}]
    command = ["fit", "-c", tiny.save(given, tmp_path / "given.yaml")]
    with monkeypatch.context() as patch:
        if every == 2:
            disturb(patch, "validation_step", 2, crash)
        else:
            patch.setattr(BaseModule, "on_train_epoch_end", lambda self: self.global_step < 4 or crash())
        with pytest.raises(Crash):
            main(command)
    assert main(command) == 0
    assert "step=4.ckpt after step 4" in capsys.readouterr().out
    validated = [row["step"] for row in rows(tmp_path) if row.get("val/toy/acc50")]
    assert validated == (["1", "3"] if every == 2 else ["2"])
    assert max(int(row["step"]) for row in rows(tmp_path)) == 3  # counted from 0: no fifth step
    assert main(command) == 0
    assert "finished: " in capsys.readouterr().out


def test_a_longer_run_goes_on_as_if_it_had_always_been_that_long(shards: str, tmp_path: Path, capsys: Any) -> None:
    constant = {"class_path": "ts_lightning.training.schedule.WarmupCosine", "init_args": {"min_factor": 1.0}}
    roots = tmp_path / "whole", tmp_path / "longer"
    for root in roots:
        root.mkdir()
        given = config(shards, root)
        given["model"]["init_args"]["lr_scheduler"] = constant
        args = ["fit", "-c", tiny.save(given, root / "given.yaml")]
        if root == roots[1]:
            assert main([*args, "--trainer.max_steps", "5"]) == 0
        assert main(args) == 0
    said = capsys.readouterr().out
    assert "trainer.max_steps: 5 -> 8: goes on; from here on the learning rate follows the schedule" in said
    extra = [row for row in rows(roots[1]) if row not in rows(roots[0])]
    assert extra == []
    assert_equal_runs(roots[1], roots[0])
    assert last(roots[1])["epoch"] == last(roots[0])["epoch"]


@pytest.mark.parametrize(
    ("method", "call"), [("training_step", 2), ("training_step", 4), ("training_step", 5), ("validation_step", 6)]
)
def test_epochs_and_checkpoints_of_lightning_go_on_exactly(
    shards: str, epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    """Two steps an epoch and a validation after each; ModelCheckpoint saves inside of the hooks of a step's end."""
    with monkeypatch.context() as patch:
        disturb(patch, method, call, crash)
        with pytest.raises(Crash):
            fit_epochs(shards, tmp_path)
    assert fit_epochs(shards, tmp_path) == 0
    assert rows(tmp_path) == rows(epochs)
    ours, theirs = (torch.load(root / "checkpoints/step=6.ckpt", weights_only=True) for root in (tmp_path, epochs))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "ShardDataModule", "global_step", "epoch"):
        assert same(ours[part], theirs[part]), part


@pytest.mark.parametrize(("every", "steps", "beside"), [(2, 5, False), (2, 4, False), (9, 5, False), (2, 5, True)])
def test_the_last_step_is_kept(shards: str, tmp_path: Path, every: int, steps: int, beside: bool) -> None:
    """Lightning's ModelCheckpoint leaves out what comes behind the last multiple of `every_n_train_steps`.

    beside: where SaveCheckpoints, as in trainer/slurm.yaml, saves the last step as well, before it.
    """
    given = config(shards, tmp_path)
    saver = {"every_n_train_steps": every, "save_last": True, "enable_version_counter": False}
    callbacks = given["trainer"]["callbacks"] if beside else []
    callbacks = [*callbacks, {"class_path": MODEL_CHECKPOINT, "init_args": saver}]
    given["trainer"] |= {"max_steps": steps, "callbacks": callbacks}
    command = ["fit", "-c", tiny.save(given, tmp_path / "given.yaml")]
    assert main(command) == 0
    path = tmp_path / "checkpoints/last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == steps
    before = path.read_bytes()
    assert main(command) == 0  # nothing is left to do
    assert path.read_bytes() == before


def test_a_linked_last_checkpoint_of_a_run_that_is_made_longer(shards: str, tmp_path: Path) -> None:
    given = config(shards, tmp_path)
    saver = {"every_n_train_steps": 2, "save_last": "link", "save_top_k": -1}
    given["trainer"] |= {"callbacks": [{"class_path": MODEL_CHECKPOINT, "init_args": saver}]}
    command = ["fit", "-c", tiny.save(given, tmp_path / "given.yaml"), "--trainer.max_steps"]
    for steps in ("3", "6", "7"):
        assert main([*command, steps]) == 0
        path = tmp_path / "checkpoints/last.ckpt"
        assert CheckpointIO().load_checkpoint(path)["global_step"] == int(steps)


def test_accumulation_by_lightning_is_refused(shards: str, tmp_path: Path, capsys: Any) -> None:
    assert fit(shards, tmp_path, "--trainer.accumulate_grad_batches=2") == 2
    assert "trainer.accumulate_grad_batches: seen 2, expected 1 (data.global_batch_size" in capsys.readouterr().err


def fit_epochs(shards: str, root: Path) -> int:
    given = tiny.config(shards, root)
    saver = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    given["trainer"] |= {"max_steps": -1, "max_epochs": 3, "limit_val_batches": 1.0}
    given["trainer"]["callbacks"] = [{"class_path": MODEL_CHECKPOINT, "init_args": saver}]
    root.mkdir(exist_ok=True)
    return main(["fit", "-c", tiny.save(given, root / "given.yaml")])


@pytest.fixture(scope="module")
def epochs(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs that nothing disturbs."""
    root = tmp_path_factory.mktemp("epochs")
    assert fit_epochs(shards, root) == 0
    return root


def test_a_changed_configuration_is_refused_with_the_difference(shards: str, whole: Path, capsys: Any) -> None:
    assert fit(shards, whole, "--model.init_args.balance_coeff", "0.5", "--data.init_args.num_workers", "1") == 2
    error = capsys.readouterr().err
    assert "model.init_args.balance_coeff: 0.01 -> 0.5" in error
    assert "num_workers" not in error
    assert not (whole / "run.lock").exists()


def test_resume_false_starts_anew_beside_the_old_run(shards: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert fit(shards, tmp_path, "--trainer.max_steps", "2", "--resume", "false") == 0
    assert (tmp_path / "checkpoints.1/step=2.ckpt").is_file()
    assert (tmp_path / "metrics.1.csv").is_file()
    assert len(rows(tmp_path)) == 3  # two steps and a validation


def test_a_damaged_newest_checkpoint_is_passed_over(shards: str, whole: Path, tmp_path: Path, caplog: Any) -> None:
    from ts_lightning.runs.resume import newest

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for path in (whole / "checkpoints").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    place = newest(folder)
    assert place is not None
    assert (place.path.name, place.steps, place.validation_follows) == ("step=8.ckpt", 8, True)
    data = bytearray((folder / "step=8.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "step=8.ckpt").write_bytes(data)
    (folder / "junk.ckpt").write_bytes(b"junk")
    place = newest(folder)
    assert place is not None
    assert place.path.name == "step=6.ckpt"
    assert "junk.ckpt: passed over" in caplog.text
    assert "step=8.ckpt: passed over" in caplog.text


def test_steps_with_nan_are_skipped_and_counted(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """NaN in one row's loss at step 2: the weights stay as after step 1, bit for bit; the key is named."""
    from ts_lightning.training import StepwiseSFT

    real, kept = StepwiseSFT.row_losses, {}

    def losses(self: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        step = self.trainer.global_step
        if step in (1, 2):
            kept.setdefault(step, {k: v.clone() for k, v in self.vlm.trainable_state_dict().items()})
        values = real(self, batch)
        if step == 1:
            kept["key"] = batch["samples"][0].where
            values["loss"] = torch.where(torch.arange(len(values["loss"])) == 0, float("nan"), values["loss"])
        return values

    monkeypatch.setattr(StepwiseSFT, "row_losses", losses)
    assert fit(shards, tmp_path, "--trainer.max_steps", "3") == 0
    assert same(kept[1], kept[2])
    assert "NaN or Inf in the loss or the gradients of step 1 (samples " in caplog.text
    assert kept["key"] in caplog.text
    assert [row["train/skipped_steps"] for row in rows(tmp_path) if row["train/loss"]] == ["0.0", "1.0", "1.0"]


def test_nan_in_a_row_ends_the_run(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from ts_lightning.training import StepwiseSFT

    real = StepwiseSFT.row_losses
    monkeypatch.setattr(
        StepwiseSFT, "row_losses", lambda self, batch: {k: v * float("inf") for k, v in real(self, batch).items()}
    )
    given = config(shards, tmp_path)
    skip = {"class_path": "ts_lightning.runs.SkipNonFinite", "init_args": {"limit": 3}}
    given["trainer"]["callbacks"].append(skip)
    assert main(["fit", "-c", tiny.save(given, tmp_path / "given.yaml")]) == 2
    error = capsys.readouterr().err
    assert "3 steps in a row, expected finite ones" in error
    assert "train-000000.tar:00" in error


def test_a_refused_start_changes_nothing(shards: str, whole: Path, capsys: Any) -> None:
    """Also where the data's state is what does not fit: that is known only after the folder was taken."""

    def kept() -> dict[str, bytes]:
        """The run's files, but for the given configuration, and the watchdog's marks of the moment."""
        return {k: v for k, v in contents(whole).items() if k != "given.yaml" and not k.startswith(".progress/")}

    before = kept()
    other = tiny.write(whole.parent / "other", ["rec"] * 10)
    assert fit(other, whole, "--trainer.max_steps", "10") == 2
    assert "data.train: seen shards " in capsys.readouterr().err
    assert fit(shards, whole, "--ckpt_path", "best") == 2
    assert "--ckpt_path: seen 'best', expected a file or a folder" in capsys.readouterr().err
    assert kept() == before


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_names_that_only_the_run_itself_knows_are_refused(command: str, capsys: Any) -> None:
    assert main([command, "--ckpt_path", "best"]) == 2
    assert "--ckpt_path: seen 'best', expected a file or a folder" in capsys.readouterr().err


def test_what_draws_from_global_generators_draws_the_same_after_a_restart(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise in the loss, as a dropout or code of a user's own adds."""
    from ts_lightning.training import StepwiseSFT

    real = StepwiseSFT.row_losses

    def noisy(self: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        rows = real(self, batch)
        return rows | {"loss": rows["loss"] * (1 + 0.1 * torch.randn(())) * (1 + 0.1 * np.random.randn())}

    monkeypatch.setattr(StepwiseSFT, "row_losses", noisy)
    roots = tmp_path / "whole", tmp_path / "killed"
    assert fit(shards, roots[0]) == 0
    with monkeypatch.context() as patch:
        disturb(patch, "training_step", 6, crash)
        with pytest.raises(Crash):
            fit(shards, roots[1])
    torch.randn(3)
    assert fit(shards, roots[1]) == 0
    assert_equal_runs(roots[1], roots[0])
