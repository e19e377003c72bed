"""`ts-lightning init`: looks at a model and at data, and writes a configuration that trains one on the other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # heavy, and imported where they are used
    from ts_lightning.cli.fit_yaml import Data, Start
    from ts_lightning.pipelines.recognise import Kind

HELD_OUT = 10  # one photo of so many is for validation


def init(
    *,
    vlm: Path | None = None,
    data: Path,
    out: Path,
    method: Literal["twist", "lora", "full", "grpo"] = "twist",
    images: Path | None = None,
    codec: str | None = None,
    frame: Literal["original", "padded_square"] | None = None,
    gpu: float | None = None,
) -> None:
    """Write a run: shards of your data, and a configuration that trains your model on them, a reason beside each value.

        ts-lightning init --vlm checkpoints/Qwen3-VL-8B-Instruct --data my_coco --out runs/mine
        ts-lightning fit -c runs/mine/fit.yaml
        ts-lightning init --vlm runs/mine --data my_coco --method grpo --out runs/mine_grpo

    Without --vlm it is the tiny base of the package: the whole path in minutes, before a download.

    Args:
        data: a folder of COCO, Roboflow, VOC, LabelImg, YOLO or RefCOCO, a COCO, LLaVA or ms-swift JSON, or shards
        out: a new folder for the run
        vlm: folder of any vlm of docs/backbones.md; of grpo also a run, checkpoint, package or adapter that SFT wrote
        method: twist (understanding stays bit by bit), lora, full, or grpo (the reward is the IoU)
        images: folder of the pictures, where they are not beside the data
        codec: notation of the boxes in the texts of a LLaVA JSON (docs/coordinates.md); words when missing
        frame: of these boxes, where it is not the notation's own: original (of the picture) or padded_square
        gpu: GiB of the card that it will run on; this machine's when missing
    """
    if frame is not None and codec is None:
        raise ValueError(f"frame: seen {frame!r} alone, expected --codec, the notation of these boxes")
    if (out / "fit.yaml").exists():
        raise ValueError(f"out: seen {out / 'fit.yaml'}, expected a new folder")
    from ts_lightning.cli.fit_yaml import Start, fit_yaml
    from ts_lightning.models.backbones.hub_layout import SHIPPED
    from ts_lightning.pipelines.recognise import recognise

    kind = recognise(data)
    if images is not None and kind.converter is None:
        raise ValueError(f"images: seen {images} for {kind.reason}, expected none: they hold their pictures")
    if codec is not None:
        if kind.converter != "llava":
            raise ValueError(f"codec: seen {codec!r} for {kind.reason}, expected it for a LLaVA JSON only")
        kind = replace(kind, options={"codec": codec, "frame": frame})
    print(f"data: {kind.path}: {kind.reason}")
    start = started(vlm, method) if vlm else Start("the tiny base", SHIPPED)
    found = shards(kind, out, images)
    print(f"questions: {found.counts['train']} of {found.train} train, {found.counts['val']} of {found.val} validate")
    text, backbone = fit_yaml(start, method, found, out, gpu)
    out.mkdir(parents=True, exist_ok=True)
    (out / "fit.yaml").write_text(text)
    if start.folder is not None and (most := backbone.init_args.get("max_pixels")) is not None:
        print(f"pictures: of {most} pixels at most, so that all of a question fit into a row (max_pixels)")
    print(f"model: {start.name}, {len(backbone.layers)} decoder layers, boxes as {backbone.encoder.codec.name}")
    print(f"\n{out / 'fit.yaml'}\n  ts-lightning fit -c {out / 'fit.yaml'}")
    print(f"  ts-lightning ask --ckpt {out} --image FILE QUESTION")


def started(vlm: Path, method: str) -> "Start":
    """What a run starts from; ValueError where a method other than grpo is given what was trained."""
    from ts_lightning.cli.fit_yaml import Start
    from ts_lightning.models.package import is_package
    from ts_lightning.runs.checkpoint_io import CheckpointIO
    from ts_lightning.runs.load import folder_model, is_standalone, run_checkpoint, stored_model

    path = Path(run_checkpoint(vlm))
    if (path / "config.json").is_file() and not is_standalone(path) and not is_package(path):
        return Start(str(path), path)
    if method != "grpo" and path.exists():
        expected = "the folder of a plain model (config.json, safetensors, tokenizer)"
        raise ValueError(f"vlm: seen {vlm}, expected {expected}; what was trained is for --method grpo")
    model = folder_model(path) if path.is_dir() else stored_model(CheckpointIO().load_checkpoint(path), path)
    spec = model["init_args"]["vlm"]
    if path.is_file():
        spec["init_args"]["init_from"] = str(path)
    return Start(str(path), None, spec)


def shards(kind: "Kind", out: Path, images: Path | None) -> "Data":
    """Training and validation shards, no photo in both: those of a folder that has both, else OUT/shards."""
    from ts_lightning.cli.fit_yaml import Data
    from ts_lightning.data.manifest import index_shards
    from ts_lightning.data.reader import ShardReader
    from ts_lightning.data.write import remove_shards, write_shards
    from ts_lightning.pipelines.convert import Conversion, convert

    folder = out / "shards"
    if kind.converter is None and all(any(kind.path.glob(f"{name}-*.tar")) for name in ("train", "val")):
        named = {name: f"{kind.path}/{name}-*.tar" for name in ("train", "val")}
        manifests = {name: index_shards(pattern) for name, pattern in named.items()}
        counts = {name: manifest.num_rows for name, manifest in manifests.items()}
        return Data(named["train"], named["val"], counts, "its own validation shards", kind.reason)
    if kind.converter is None:
        manifest = index_shards(str(kind.path / "*.tar"))
    else:
        path = None if kind.converter == "coco" and kind.path.is_file() else str(kind.path)
        options = kind.options if path else {**kind.options, "annotations": str(kind.path)}
        made = convert(
            kind.converter, Conversion(out=folder, path=path, prefix="all", images=images or kind.images), options
        )
        manifest = made.manifest
        print("\n".join(made.dropped.lines()))
    reader, counts = ShardReader(manifest), {"train": 0, "val": 0}
    for name in counts:
        write_shards(part(reader, manifest.num_rows, name == "val", counts), folder, name)
    if kind.converter is not None:
        remove_shards(folder, "all")
    if not all(counts.values()):
        seen = f"seen {counts['train']} training and {counts['val']} validation questions in {kind.path}"
        raise ValueError(f"data: {seen}, expected some of both: more photos (--images DIR: where they lie)")
    why = f"one photo of {HELD_OUT}, not trained on"
    return Data(f"{folder}/train-*.tar", f"{folder}/val-*.tar", counts, why, kind.reason)


def part(reader: Any, rows: int, held_out: bool, counts: dict[str, int]) -> Iterator[Any]:
    """The questions about the photos that are held out, or about all others; counted."""
    import zlib

    for i in range(rows):
        sample = reader.read(i)
        photo = sample.images[0].name if sample.images else sample.key
        if (zlib.crc32(photo.encode()) % HELD_OUT == 0) == held_out:
            counts["val" if held_out else "train"] += 1
            yield sample
