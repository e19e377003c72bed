"""A vlm, shards and configurations that train in a second: real classes, smallest sizes."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ts_lightning.data.sample import Answer, Sample, SampleImage, SampleRegion, Turn
from ts_lightning.data.write import write_shards

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2, "num_experts": 2}
BACKBONE = {
    "class_path": "ts_lightning.models.backbones.tiny.TinyBackbone",
    "init_args": {"pretrained": None, **SIZES, "vision_layers": 1, "image_size": 24, "patch_size": 12},
}
TWIN = {
    "class_path": "ts_lightning.models.TwinExpertVLM",
    "init_args": {"backbone": BACKBONE, "every": 1, "train_token_rows": ["codec"]},
}
PLAIN = {"class_path": "ts_lightning.models.PlainVLM", "init_args": {"backbone": BACKBONE, "train": ["*"]}}


def jpeg(color: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(data, "JPEG")
    return data.getvalue()


def sample(i: int, kind: str) -> Sample:
    """One record: kind is colour (understanding), rec, scout or negative."""
    x = 0.1 + 0.02 * (i % 10)
    box = SampleRegion(phrase="square", box=(x, 0.2, x + 0.4, 0.7))
    user, text, answer = "Where is the square?", "{region:0}", Answer(None, [0])
    if kind == "colour":
        user, text, answer = "What color is it?", "red", Answer("red")
    elif kind == "scout":
        user, answer = "What color is the square? Think in steps.", Answer("red")
        text = "Step 1: Find the square {region:0}. Step 2: So the answer is red."
    elif kind == "negative":
        text, answer = "There is a square {region:0} in the image, not a dog. This question is invalid.", Answer()
    return Sample(
        id=f"{kind}-{i}",
        source="test",
        task="understanding" if kind == "colour" else "grounding",
        subtask=kind,
        tags={"scout": ["cot"], "negative": ["negative"]}.get(kind, []),
        images=[SampleImage(f"{i}.jpg", 40, 30)],
        turns=[Turn("user", f"<image>\n{user}"), Turn("assistant", text)],
        regions=[] if kind == "colour" else [box],
        answer=answer,
        key=f"{i:04d}",
        image_bytes=[jpeg((25 * (i % 10), 80, 160))],
    )


def write(folder: Path, kinds: list[str], name: str = "train", maxcount: int = 100) -> str:
    """Shards with one record for each entry of `kinds`; returns their glob."""
    write_shards([sample(i, kind) for i, kind in enumerate(kinds)], folder, name, maxcount)
    return str(folder / f"{name}-*.tar")


def config(shards: str, root: Path, vlm: dict[str, Any] = TWIN, **model: Any) -> dict[str, Any]:
    """A complete configuration of a fit over `shards` as training set and as the suite `toy`."""
    cls = "SFT" if vlm is PLAIN else "StepwiseSFT"
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 4,
            "max_epochs": -1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(root),
        },
        "model": {
            "class_path": f"ts_lightning.training.{cls}",
            "init_args": {"vlm": vlm, "optimizer": optimizer, "max_new_tokens": 4, **model},
        },
        "data": {
            "class_path": "ts_lightning.data.ShardDataModule",
            "init_args": {
                "train": {"shards": shards},
                "val": {"toy": {"shards": shards}},
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "eval_batch_size": 3,
            },
        },
    }


def steady(name: str) -> bool:
    """Whether a logged figure is the same in every run of the same steps: it is not about speed or memory."""
    return not any(part in name for part in ("per_second", "pad_share", "peak_memory", "mfu"))


def save(config: dict[str, Any], path: Path) -> str:
    """Write a configuration (JSON is YAML); returns the path."""
    path.write_text(json.dumps(config))
    return str(path)


MIXED = ["rec", "colour", "scout", "rec", "negative", "colour", "rec", "scout", "colour", "rec"]
