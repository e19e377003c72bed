"""The runs that test_fsdp2 compares, in a process of their own. Ranks are forked, imports are paid for once."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.tensor import DTensor

from tests.integration import (
    test_grpo,  # of a reward, there before ranks are forked
    tiny,
)
from tests.reliability import processes
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.data.write import write_shards
from ts_lightning.models import LoRAVLM, PlainVLM, TwinExpertVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples
from ts_lightning.pipelines.toy_world.shards import grounding_samples
from ts_lightning.rl import RolloutCallback
from ts_lightning.runs import CheckpointIO, FSDP2Strategy, SaveCheckpoints
from ts_lightning.runs.metrics_log import MetricsLog
from ts_lightning.training import GRPO, SFT, BaseModule, LoRASFT, StepwiseSFT

OVERLAYS = Path(__file__).parents[2] / "configs/trainer"
SAVER = {"class_path": "ts_lightning.runs.SaveCheckpoints", "init_args": {"every_n_steps": 2, "keep": 2}}
REWARDS = {"own": "tests.integration.test_grpo.length", "object": "ts_lightning.rl.object_reward"}


def command(root: Path, shards: str, overlay: str | None, *args: str, ranks: int = 2) -> None:
    """Four steps of `ts-lightning fit` with TWIST on so many ranks."""
    given = tiny.config(shards, root, balance_coeff=0.1)
    given["data"]["init_args"]["global_batch_size"] = 12  # two ranks: three micro-batches each; three ranks: two
    given["trainer"] |= {"gradient_clip_val": 0.1, "callbacks": [SAVER]}
    root.mkdir()
    line = ["-c", tiny.save(given, root / "given.yaml"), "--watchdog", "0"]
    if overlay:
        line += ["-c", str(OVERLAYS / f"{overlay}.yaml"), "--trainer.accelerator", "cpu"]
    finish(root, processes.start([*line, "--trainer.devices", str(ranks), *args], root / "run.log", None, ranks))


def fit(
    root: Path,
    shards: str,
    strategy: str,
    module: BaseModule,
    patch: Callable[[int], None] = lambda rank: None,
    callbacks: Sequence[L.Callback] = (),
    per_row: int = 1,
    **trainer: Any,
) -> None:
    """`module` on two ranks, without the command line's parsing; `patch` gets the rank first.

    Packed rows of FSDP2 exchange gradients once a step.
    """

    def run(rank: int) -> None:
        patch(rank)
        L.seed_everything(0)
        source, rows = ShardSource(shards), {"global_batch_size": 8, "micro_batch_size": 2}
        data = ShardDataModule(train=source, val={"toy": source}, questions_per_row=per_row, **rows)
        made = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=FSDP2Strategy(exchange_once=per_row > 1) if strategy == "fsdp" else DDPStrategy(),
            logger=MetricsLog(root),
            callbacks=[SaveCheckpoints(), *callbacks],
            plugins=[CheckpointIO()],
            use_distributed_sampler=False,
            default_root_dir=root,
            log_every_n_steps=1,
            max_epochs=-1,
            **{"gradient_clip_val": 0.1, "limit_val_batches": 0, "max_steps": 2, **trainer},
        )
        made.fit(module, data)
        sys.exit(0)

    root.mkdir()
    finish(root, processes.start([], root / "run.log", run, 2))


def finish(root: Path, children: Any) -> None:
    """Wait; the end of the ranks' output is shown when one fails."""
    statuses = processes.finish(children, 90)
    if any(status != 0 for status in statuses):
        sys.exit(f"{root.name}: exit statuses {statuses}\n{(root / 'run.log').read_text()[-2000:]}")


def backbone(**more: Any) -> TinyBackbone:
    return TinyBackbone(None, **tiny.SIZES, vision_layers=1, image_size=24, patch_size=12, **more)


def watched(root: Path) -> Callable[[int], None]:
    """One row's loss is NaN on rank 1 at step 1, and rank 0's answers end at their first token, those of rank 1 never.

    Every rank saves its part of the weights before each step, and the number of its forwards in validation.
    """

    def patch(rank: int) -> None:
        row_losses, validation_step = StepwiseSFT.row_losses, BaseModule.validation_step
        forwards = []

        def losses(self: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            step = self.trainer.global_step
            parts = {n: (p.to_local() if isinstance(p, DTensor) else p).detach() for n, p in self.named_parameters()}
            sizes = {n: (p.numel(), isinstance(p, DTensor)) for n, p in self.named_parameters()}
            torch.save({"parts": parts, "sizes": sizes}, root / f"step-{step}-{rank}.pt")
            values = row_losses(self, batch)
            if rank == step == 1:
                values["loss"] = torch.where(torch.arange(len(values["loss"])) == 0, float("nan"), values["loss"])
            return values

        def validate(self: Any, batch: dict[str, Any], *args: Any) -> None:
            vlm = self.vlm

            def scripted(hidden_NH: torch.Tensor, *given: Any) -> torch.Tensor:
                forwards.append(len(hidden_NH))
                token = vlm.tokenizer.eos_token_id if rank == 0 else 40
                return TwinExpertVLM.logits(vlm, hidden_NH, *given).index_fill(1, torch.tensor([token]), 1000.0)

            vlm.__dict__["logits"] = scripted
            validation_step(self, batch, *args)
            del vlm.__dict__["logits"]
            (root / f"forwards-{rank}.json").write_text(json.dumps(len(forwards)))

        StepwiseSFT.row_losses, BaseModule.validation_step = losses, validate  # type: ignore[method-assign]

    return patch


def text_on_rank_one(rank: int) -> None:
    """Rank 1 trains on text alone."""
    real = SFT.row_losses

    def row_losses(self: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if rank == 1:
            ids_BT = batch["input_ids"]
            text_BT = ids_BT.masked_fill(ids_BT == self.vlm.backbone.image_token_id, 5)
            batch = {**batch, "input_ids": text_BT, "pixel_values": batch["pixel_values"][:0]}
        return real(self, batch)

    SFT.row_losses = row_losses  # type: ignore[method-assign]


def main(folder: Path, rank: int = 0) -> None:
    shards = tiny.write(folder, tiny.MIXED * 2)
    write_shards(multi_image_samples("rl", 12), folder, "rl")
    write_shards(grounding_samples("train", 40, per_scene=4), folder, "scenes")
    for name in ("ddp", "fsdp"):
        command(folder / name, shards, name)
    middle = {name: ["--ckpt_path", str(folder / name / "checkpoints/step=2.ckpt")] for name in ("ddp", "fsdp")}
    command(folder / "resumed", shards, "fsdp", *middle["fsdp"])
    command(folder / "three_ranks", shards, "fsdp", *middle["ddp"], ranks=3)
    command(folder / "one_process", shards, None, *middle["fsdp"], ranks=1)

    validation = {"limit_val_batches": 1, "check_val_every_n_epoch": None, "val_check_interval": 3, "max_steps": 3}
    twin = StepwiseSFT(TwinExpertVLM(backbone(), every=1), max_new_tokens=6)
    fit(folder / "nan", shards, "fsdp", twin, watched(folder / "nan"), num_sanity_val_steps=0, **validation)
    lora = LoRASFT(LoRAVLM(backbone(), rank=4, train_token_rows=["codec"]))
    plain = SFT(PlainVLM(backbone(), activation_checkpointing=True))
    rank = StepwiseSFT(TwinExpertVLM(backbone(), every=1, expert_rank=4, activation_checkpointing=True))
    policies = {
        "twin": TwinExpertVLM(
            backbone(codec="mirg", codec_grid="100"), every=1, train_token_rows=["codec"], expert_rank=4
        ),
        "plain": PlainVLM(backbone(codec="mirg", codec_grid="100"), ["*language_model*"]),
    }
    for strategy in ("ddp", "fsdp"):
        fit(folder / f"lora_{strategy}", shards, strategy, lora)
        fit(folder / f"plain_{strategy}", shards, strategy, plain, text_on_rank_one)
        fit(folder / f"rank_{strategy}", str(folder / "scenes-*.tar"), strategy, rank, per_row=4)
        for kind, vlm in policies.items():
            rollout = RolloutCallback(num_generations=3, max_new_tokens=6, stop_after=test_grpo.OFTEN, rewards=REWARDS)
            root = folder / f"grpo_{kind}_{strategy}"
            fit(root, str(folder / "rl-*.tar"), strategy, GRPO(vlm), callbacks=[rollout])
