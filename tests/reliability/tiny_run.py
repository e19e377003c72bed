"""The run that is tortured: a small twin-expert model on pictures of one colour, in seconds on one core."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2, "num_experts": 2}
_BACKBONE = {
    "class_path": "ts_lightning.models.backbones.tiny.TinyBackbone",
    "init_args": {"pretrained": None, **_SIZES, "vision_layers": 1, "image_size": 24, "patch_size": 12},
}
_TWIN = {"backbone": _BACKBONE, "every": 1, "train_token_rows": ["codec"]}


def sample(number: int) -> Sample:
    """Record `number`: every third asks for a colour, the others for a box."""
    data, x = io.BytesIO(), 0.1 + 0.02 * (number % 20)
    Image.new("RGB", (40, 30), (12 * number % 256, 80, 160)).save(data, "JPEG")
    asks_colour = number % 3 == 0
    turns = [("What color is it?", "red")] if asks_colour else [("Where is the square?", "{region:0}")]
    return Sample(
        id=f"toy-{number}",
        source="torture",
        task="understanding" if asks_colour else "grounding",
        subtask="colour" if asks_colour else "rec",
        tags=[],
        images=[SampleImage(f"{number}.jpg", 40, 30)],
        turns=[Turn("user", "<image>\n" + turns[0][0]), Turn("assistant", turns[0][1])],
        regions=[] if asks_colour else [SampleRegion(phrase="square", box=(x, 0.2, x + 0.4, 0.7))],
        answer=Answer("red") if asks_colour else Answer(None, [0]),
        key=f"{number:05d}",
        image_bytes=[data.getvalue()],
    )


def write(folder: Path, count: int, shard: int = 17) -> str:
    """Shards with `count` records, `shard` in each; returns their glob."""
    write_shards((sample(i) for i in range(count)), folder, "train", shard)
    return str(folder / "train-*.tar")


def config(shards: str, root: Path, steps: int, pause: float = 0.0, save: int = 2, **data: Any) -> dict[str, Any]:
    """A complete configuration: a save every `save` steps, a validation every fourth, `pause` seconds in each step."""
    saver = {"class_path": "ts_lightning.runs.SaveCheckpoints", "init_args": {"every_n_steps": save, "keep": 2}}
    slow = {"class_path": "tests.reliability.tiny_run.Pause", "init_args": {"seconds": pause}}
    trainer = {
        **{"accelerator": "cpu", "devices": 1, "max_steps": steps, "max_epochs": -1, "log_every_n_steps": 1},
        **{"num_sanity_val_steps": 0, "limit_val_batches": 2, "check_val_every_n_epoch": None, "val_check_interval": 4},
        **{"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(root)},
        "callbacks": [saver, slow],
    }
    vlm = {"class_path": "ts_lightning.models.TwinExpertVLM", "init_args": _TWIN}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    sizes = {"global_batch_size": 4, "micro_batch_size": 1, "eval_batch_size": 2} | data
    return {
        "seed_everything": 0,
        "trainer": trainer,
        "model": {
            "class_path": "ts_lightning.training.StepwiseSFT",
            "init_args": {"vlm": vlm, "optimizer": optimizer, "max_new_tokens": 2},
        },
        "data": {
            "class_path": "ts_lightning.data.ShardDataModule",
            "init_args": {"train": {"shards": shards}, "val": {"toy": {"shards": shards, "max_samples": 6}}, **sizes},
        },
    }


def save(given: dict[str, Any], path: Path) -> str:
    """Write a configuration (JSON is YAML); returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given))
    return str(path)


class Pause(Callback):
    """Sleep in every step, so that a signal or a requeue finds the run at work."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(self.seconds)


def state(root: Path, steps: int) -> dict[str, Any]:
    """What has to be equal at the end: weights, optimizer, schedule, position in the data."""
    checkpoint = torch.load(root / f"checkpoints/step={steps}.ckpt", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "ShardDataModule", "global_step")
    return {name: checkpoint[name] for name in names}


def metrics(root: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the speed."""
    speed = ("per_second", "pad_share", "peak_memory", "mfu")
    with (root / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not any(part in k for part in speed)} for row in found]


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested values: of runs whose steps have the same shapes, rows and order."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else bool(a == b)
