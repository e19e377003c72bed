"""fit, validate, predict through the command line, resume, and what one training step touches.

Bitwise: the same steps, their shapes, rows and order alike, and weights that are copied.
"""

import csv
import functools
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from tests.integration import tiny
from ts_lightning.cli import main
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.models import TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.export import write_checkpoint
from ts_lightning.runs.load import load
from ts_lightning.training import SFT, StepwiseSFT


def run(command: str, config: dict[str, Any] | None, root: Path, *args: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    given = [] if config is None else ["-c", tiny.save(config, root / "given.yaml")]
    assert main([command, *given, *args]) == 0


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def tiny_vlm(**args: Any) -> TwinExpertVLM:
    torch.manual_seed(0)  # routers start random
    return TwinExpertVLM(TinyBackbone(**tiny.BACKBONE["init_args"]), every=1, train_token_rows=["codec"], **args)


def data(shards: str, **args: Any) -> ShardDataModule:
    return ShardDataModule(train=ShardSource(shards), global_batch_size=4, **{"micro_batch_size": 2, **args})


def trainer(root: Path, **args: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(
        default_root_dir=root, enable_checkpointing=False, **{"max_steps": 2, "max_epochs": -1, **quiet, **args}
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def fitted(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of 6 steps over 2 batches an epoch, with a checkpoint after every third step."""
    root = tmp_path_factory.mktemp("fitted")
    config = tiny.config(shards, root)
    saver = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    speed = {"class_path": "ts_lightning.training.Throughput", "init_args": {"peak_tflops": 0.5}}
    checkpoints = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver}
    config["trainer"]["callbacks"] = [checkpoints, speed]
    config["trainer"]["max_steps"] = 6
    run("fit", config, root)
    return root


def test_fit_writes_config_metrics_and_checkpoints(fitted: Path) -> None:
    assert (fitted / "config.yaml").is_file()
    train = [row for row in rows(fitted / "metrics.csv") if row["train/loss"]]
    assert len(train) == 6
    assert {"train/steps", "train/balance", "train/alpha", "train/samples_per_second"} <= train[0].keys()
    assert {"train/expert_load", "train/pad_share", "train/tokens_per_second", "train/peak_memory_gib"} <= set(train[0])
    assert float(train[-1]["train/mfu"]) == pytest.approx(float(train[-1]["train/tflops_per_second"]) / 0.5) != 0
    assert float(train[-1]["train/loss"]) < float(train[0]["train/loss"])
    assert float(train[0]["train/alpha"]) == 0.5
    names = sorted(path.name for path in (fitted / "checkpoints").iterdir())
    assert names == ["step=3.ckpt", "step=3.ckpt.sha256", "step=6.ckpt", "step=6.ckpt.sha256"]


def test_checkpoint_holds_what_trained_and_the_base(fitted: Path) -> None:
    checkpoint = read(fitted / "checkpoints/step=6.ckpt")
    vlm = load(fitted / "checkpoints/step=6.ckpt").vlm
    trained = {f"vlm.{name}" for name, p in vlm.named_parameters() if p.requires_grad}
    assert checkpoint["state_dict"].keys() == trained
    assert all("packages" in name or "token_rows" in name for name in trained)
    assert checkpoint["base"] == vlm.identity()
    assert checkpoint["ShardDataModule"]["epoch"] == 3


def test_load_gives_the_stored_class_and_weights(fitted: Path) -> None:
    path = fitted / "checkpoints/step=6.ckpt"
    module = load(path)
    assert type(module) is StepwiseSFT
    assert not module.training
    stored = read(path)["state_dict"]
    assert all(torch.equal(p, stored[f"vlm.{name}"]) for name, p in module.vlm.named_parameters() if p.requires_grad)


def test_validate_needs_only_the_checkpoint(fitted: Path, tmp_path: Path) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    run("validate", None, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=6.ckpt"), *args)
    (result,) = rows(tmp_path / "validate/metrics.csv")
    assert {
        "val/toy/miou",
        "val/toy/acc50",
        "val/toy/accuracy",
        "val/toy/rec/acc50",
        "val/toy/rejection_rate",
    } <= result.keys()


def test_test_names_its_figures(fitted: Path, tmp_path: Path) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"]
    run("test", None, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=6.ckpt"), *args)
    (result,) = rows(tmp_path / "test/metrics.csv")
    assert {"test/toy/miou", "test/toy/accuracy"} <= result.keys()


def test_dotted_overrides_go_over_the_checkpoint(fitted: Path, tmp_path: Path) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path), "--data.init_args.eval_batch_size", "7"]
    run("validate", None, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=6.ckpt"), *args)
    assert "eval_batch_size: 7" in (tmp_path / "validate/config.yaml").read_text()


def test_predict_writes_one_line_per_question(fitted: Path, tmp_path: Path) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false", "--pictures", "2"]
    run("predict", None, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=6.ckpt"), *args)
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [record["key"] for record in records] == [f"{i:04d}" for i in range(10)]
    assert records[0]["truth"]["box"] == [0.1, 0.2, 0.5, 0.7]
    assert records[0]["question"] == "Where is the square?"
    assert {record["parse_status"] for record in records} <= {"ok", "several", "unparsed", "not_asked"}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def test_bare_pictures_draws_some(fitted: Path, tmp_path: Path) -> None:
    args = ["--trainer.default_root_dir", str(tmp_path), "--data.init_args.val.toy.max_samples", "3", "--pictures"]
    run("predict", None, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=6.ckpt"), *args)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


def test_resume_equals_the_uninterrupted_run(fitted: Path, shards: str, tmp_path: Path) -> None:
    config = tiny.config(shards, tmp_path)
    config["trainer"]["max_steps"] = 6
    run("fit", config, tmp_path, "--ckpt_path", str(fitted / "checkpoints/step=3.ckpt"))
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    ours, theirs = read(path), read(fitted / "checkpoints/step=6.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "ShardDataModule", "global_step", "epoch"):
        assert same(ours[part], theirs[part]), part
    losses = [
        [row["train/loss"] for row in rows(root / "metrics.csv") if row["train/loss"]] for root in (tmp_path, fitted)
    ]
    assert losses[0] == losses[1][3:]


def test_init_from_takes_weights_alone(fitted: Path, shards: str, tmp_path: Path) -> None:
    path = fitted / "checkpoints/step=6.ckpt"
    vlm = tiny_vlm(init_from=str(path))
    stored = read(path)["state_dict"]
    assert all(torch.equal(p, stored[f"vlm.{name}"]) for name, p in vlm.named_parameters() if p.requires_grad)


def sgd_run(
    shards: str, root: Path, micro_batch_size: int, step_loss: str = "step_mean", **vlm: Any
) -> tuple[dict[str, torch.Tensor], StepwiseSFT]:
    module = StepwiseSFT(tiny_vlm(**vlm), optimizer=functools.partial(torch.optim.SGD, lr=0.5), step_loss=step_loss)
    trainer(root).fit(module, datamodule=data(shards, micro_batch_size=micro_batch_size))
    return module.vlm.trainable_state_dict(), module


def test_micro_batches_do_not_change_the_step(shards: str, tmp_path: Path) -> None:
    whole, _ = sgd_run(shards, tmp_path, 4)
    before = tiny_vlm().trainable_state_dict()
    for size in (1, 2):
        parts, _ = sgd_run(shards, tmp_path, size)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.equal(before[name], value) for name, value in whole.items())


def test_activation_checkpointing_does_not_change_the_step(shards: str, tmp_path: Path) -> None:
    kept, _ = sgd_run(shards, tmp_path, 2)
    recomputed, _ = sgd_run(shards, tmp_path, 2, activation_checkpointing=True)
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_step_loss_modes_train_differently(shards: str, tmp_path: Path) -> None:
    results = [sgd_run(shards, tmp_path, 2, mode)[0] for mode in ("sum", "step_mean", "isolated")]
    assert all(torch.isfinite(value).all() for result in results for value in result.values())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(results[a][name], results[b][name]) for name in results[a])


def test_gradients_reach_exactly_the_trainable_parameters(shards: str, tmp_path: Path) -> None:
    seen: dict[str, bool] = {}

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            seen.update({name: p.grad is not None for name, p in pl_module.vlm.named_parameters()})

    module = StepwiseSFT(tiny_vlm(), optimizer=functools.partial(torch.optim.AdamW, lr=0.01))
    frozen = {name: p.clone() for name, p in module.vlm.named_parameters() if not p.requires_grad}
    trainer(tmp_path, callbacks=[Watch()]).fit(module, datamodule=data(shards))
    assert seen == {name: p.requires_grad for name, p in module.vlm.named_parameters()}
    assert any(seen.values())
    assert not all(seen.values())
    assert all(torch.equal(p, frozen[name]) for name, p in module.vlm.named_parameters() if name in frozen)


def test_modes_are_set(shards: str, tmp_path: Path) -> None:
    _, module = sgd_run(shards, tmp_path, 2)
    twin = module.vlm.twins[0]
    assert twin.packages["grounding"].experts.training
    assert not twin.understanding.training


def test_batch_without_a_loss_token_changes_nothing(tmp_path: Path) -> None:
    """Only masked rows: the loss is 0, the gradients are zeros, nothing is NaN."""
    module = StepwiseSFT(tiny_vlm(), optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    before = {name: p.clone() for name, p in module.vlm.trainable_state_dict().items()}

    class Masked(ShardDataModule):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            for micro in batch["micro_batches"]:
                micro["step_ids"].fill_(-1)
            return batch

    source = ShardSource(tiny.write(tmp_path, ["rec"] * 4))
    trainer(tmp_path, max_steps=1).fit(module, datamodule=Masked(train=source, global_batch_size=4, micro_batch_size=2))
    assert same(module.vlm.trainable_state_dict(), before)


def test_module_built_in_python_saves_and_loads(shards: str, tmp_path: Path) -> None:
    module = StepwiseSFT(tiny_vlm(), optimizer=functools.partial(torch.optim.SGD, lr=0.5), balance_coeff=0.5)
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(module, datamodule=data(shards))
    runner.save_checkpoint(tmp_path / "python.ckpt")
    again = load(tmp_path / "python.ckpt")
    assert same(again.vlm.trainable_state_dict(), module.vlm.trainable_state_dict())
    assert again.loss.balance_coeff == 0.5
    assert isinstance(again.make_optimizer([torch.nn.Parameter(torch.zeros(1))]), torch.optim.AdamW)  # not the stored
    stored = read(tmp_path / "python.ckpt")
    assert stored["config"]["model"]["init_args"]["optimizer"]["init_args"] == {"lr": 0.5}
    assert stored["versions"].keys() == {"ts_lightning", "torch", "transformers", "lightning"}
    assert not {"hyper_parameters", "class_path", "data_config"} & stored.keys()


def test_a_function_trains_and_is_refused_where_it_would_be_saved(shards: str, tmp_path: Path) -> None:
    module = StepwiseSFT(tiny_vlm(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    plainly = ShardDataModule(train=shards, val={"toy": {"shards": shards}}, global_batch_size=4, micro_batch_size=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=1, enable_checkpointing=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, **quiet,
    )  # fmt: skip
    trainer.fit(module, plainly)
    with pytest.raises(ValueError, match=r"optimizer: seen function .*expected a plain value"):
        trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"max_new_tokens: seen set"):
        StepwiseSFT(tiny_vlm(), max_new_tokens={1})


def test_a_checkpoint_from_python_validates_by_the_command(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = StepwiseSFT(tiny_vlm(), max_new_tokens=4)
    write_checkpoint(module, tmp_path / "x.ckpt")
    suites = ["--data.init_args.val", json.dumps({"toy": {"shards": shards, "max_samples": 2}})]
    root = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert main(["validate", "--ckpt_path", str(tmp_path / "x.ckpt"), *suites, *root]) == 0
    assert "val/toy/" in capsys.readouterr().out
    (tmp_path / "over.yaml").write_text("model: {init_args: {max_new_tokens: 8}}")
    assert main(["fit", "-c", str(tmp_path / "over.yaml")]) == 2
    assert "model: seen no class_path, expected a whole configuration: -c fit/NAME.yaml" in capsys.readouterr().err


def test_full_fine_tuning_trains_everything(shards: str, tmp_path: Path) -> None:
    config = tiny.config(shards, tmp_path, tiny.PLAIN)
    run("fit", config, tmp_path)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    module = load(path)
    assert type(module) is SFT
    backbone = module.vlm.backbone
    frozen = {name for name, p in backbone.model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in backbone.model.named_parameters() if "post_layernorm" in name}  # never read


def test_bf16_keeps_what_trains_in_fp32(shards: str, tmp_path: Path) -> None:
    module = StepwiseSFT(tiny_vlm(), optimizer=functools.partial(torch.optim.AdamW, lr=0.01))
    trainer(tmp_path, precision="bf16-mixed").fit(module, datamodule=data(shards))
    kinds = {(p.requires_grad, p.dtype) for p in module.vlm.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert all(torch.isfinite(p).all() for p in module.vlm.parameters())


def test_weights_that_train_in_16_bits_are_refused_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def kinds(precision: str) -> set[tuple[bool, torch.dtype]]:
        module = StepwiseSFT(tiny_vlm().to(torch.bfloat16))
        with monkeypatch.context() as patch:  # 16-mixed wants a GPU
            patch.setattr(L.Trainer, "precision", precision)
            module.trainer = trainer(tmp_path)
            module.setup("fit")
        return {(p.requires_grad, p.dtype) for p in module.vlm.parameters()}

    mixed = {(True, torch.float32), (False, torch.bfloat16)}
    assert kinds("bf16-mixed") == kinds("16-mixed") == mixed
    with pytest.raises(ValueError, match=r"precision: seen 32-true .* torch\.bfloat16 .* expected bf16-mixed"):
        kinds("32-true")
    both = StepwiseSFT(tiny_vlm().to(torch.bfloat16))
    next(p for p in both.vlm.parameters() if p.requires_grad).data = torch.zeros(1, dtype=torch.float16)
    both.trainer = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"where torch\.bfloat16, torch\.float16 weights train"):
        both.setup("fit")
    assert "trainer.precision" not in caplog.text
    kinds("bf16-true")
    assert "seen bf16-true: what trains is held in 16 bits" in caplog.text


def test_accumulation_that_a_callback_sets_is_refused(tmp_path: Path) -> None:
    module = StepwiseSFT(tiny_vlm())
    module.trainer = trainer(tmp_path, callbacks=[GradientAccumulationScheduler({4: 2})])
    with pytest.raises(ValueError, match="accumulate_grad_batches: seen 2, expected 1"):
        module.setup("fit")


CALLBACKS = "lightning.pytorch.callbacks"
EVERY = {"save_top_k": -1, "filename": "{step}"}


def test_the_rate_falls_where_a_score_no_longer_rises(shards: str, tmp_path: Path, capsys: Any) -> None:
    """4 tokens hold no box: miou is 0 thrice, better than nothing once. The save of a validation has its rate."""
    config = tiny.config(shards, tmp_path)
    given = {"monitor": "val/toy/miou", "mode": "max", "patience": 0, "factor": 0.5}
    config["model"]["init_args"]["lr_scheduler"] = {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": given,
    }
    saver = {**EVERY, "monitor": "val/toy/miou"}
    config["trainer"] |= {"max_steps": 3, "limit_val_batches": 1, "val_check_interval": 1}
    config["trainer"]["check_val_every_n_epoch"] = None
    config["trainer"]["callbacks"] = [{"class_path": f"{CALLBACKS}.ModelCheckpoint", "init_args": saver}]
    run("fit", config, tmp_path)
    stored = [read(tmp_path / f"checkpoints/step={step}.ckpt") for step in (1, 2, 3)]
    assert [one["optimizer_states"][0]["param_groups"][0]["lr"] for one in stored] == [0.01, 0.005, 0.0025]
    given["monitor"] = "val/toy/iou"
    path = tiny.save(config, tmp_path / "other.yaml")
    assert main(["fit", "-c", path, "--trainer.default_root_dir", str(tmp_path / "other")]) == 2
    assert "lr_scheduler.monitor: seen 'val/toy/iou', expected one of val/toy/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("EMAWeightAveraging", {"decay": 0.5}, "it averages frozen weights, codes and token ids, too"),
        ("StochasticWeightAveraging", {"swa_lrs": 0.01, "swa_epoch_start": 1}, "after the last checkpoint"),
    ],
)
def test_averages_of_weights_are_refused(
    name: str, given: dict, why: str, shards: str, tmp_path: Path, capsys: Any
) -> None:
    """Before anything is copied; `validate` under the same trainer averages nothing, and runs."""
    config = tiny.config(shards, tmp_path)
    config["trainer"]["callbacks"] = [{"class_path": f"{CALLBACKS}.{name}", "init_args": given}]
    path = tiny.save(config, tmp_path / "given.yaml")
    assert main(["fit", "-c", path, "--allow_classes", "lightning"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "trainer.callbacks" in line]
    assert f"trainer.callbacks: seen {name}, expected none: " in line
    assert why in line
    callback = getattr(L.pytorch.callbacks, name)(**given)
    module, other = StepwiseSFT(tiny_vlm()), trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match=f"trainer.callbacks: seen {name}"):
        other.fit(module, datamodule=data(shards))
    assert callback._average_model is None
    other.validate(module, datamodule=data(shards, val={"toy": {"shards": shards, "max_samples": 2}}), verbose=False)
