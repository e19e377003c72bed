"""The retention certificate of a checkpoint: load it, load its base afresh, compare them on understanding questions."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ts_lightning.data import Sample, index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.data.remote import without_secrets
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.models import VLM, PlainVLM
from ts_lightning.reports.retention import certify, changed, tensor_sha256
from ts_lightning.runs.batch import batch_for
from ts_lightning.runs.load import load, run_checkpoint


def certify_checkpoint(
    ckpt: str | Path,
    shards: str | Sequence[str],
    max_samples: int = 512,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    device: str = "cpu",
) -> dict[str, Any]:
    """`certify` for a checkpoint or a folder of ours on the first `max_samples` understanding records of the shards.

    The result also names what was compared: checkpoint and shards by sha256, base, threads and torch version, and by
    `trained_sha256` the weights themselves, which a checkpoint and the package made of it share.
    ValueError for a checkpoint or shards that can't be used, a whole model, or no understanding records.
    """
    samples, manifest_sha = understanding_samples(shards, max_samples)
    ckpt = run_checkpoint(ckpt)
    tuned = load(ckpt, device).vlm
    result = certify_on(tuned, samples, batch_size, max_new_tokens)
    digest = weights_sha256(Path(ckpt))
    return {
        **result,
        "checkpoint": {"path": str(ckpt), "sha256": digest, "trained_sha256": trained_sha256(tuned)},
        "shards": {"manifest_sha256": manifest_sha, "samples": len(samples)},
    }


def weights_sha256(path: Path) -> str:
    """The sha256 of a checkpoint file; for a folder, that of its weight files one after the other."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def trained_sha256(vlm: VLM) -> str:
    """The sha256 of the weights that trained, by name, whatever file or folder they came from."""
    state = sorted(vlm.trainable_state_dict().items())
    return hashlib.sha256("".join(f"{name} {tensor_sha256(t)}\n" for name, t in state).encode()).hexdigest()


def certify_on(tuned: VLM, samples: Sequence[Sample], batch_size: int = 32, max_new_tokens: int = 32) -> dict[str, Any]:
    """`certify` for a tuned vlm, against a freshly loaded base, on understanding samples that carry their images.

    Both answer the base's rows; `read_otherwise` has the keys of samples whose own row of the tuned vlm is another.
    ValueError for a plain or merged model: it is its own base, and would be compared with itself.
    """
    if not tuned.trainable_state_dict():
        expected = "expected the checkpoint, package or adapter that it was exported from"
        raise ValueError(f"certify: seen a whole model, which is its own base, {expected}")
    tuned, base = tuned.eval(), untouched(tuned)
    parts = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]

    def collated(for_generation: bool) -> Iterator[dict[str, Any]]:
        for part in parts:
            rows = [base.encode(sample, for_generation) for sample in part]
            yield batch_for(base, rows, "left" if for_generation else "right")

    result = certify(tuned, base, collated(False), collated(True), max_new_tokens)
    result["read_otherwise"] = [s.key for s in samples if not torch.equal(*(_ids(vlm, s) for vlm in (tuned, base)))]
    result["passed"] = result["passed"] and not result["read_otherwise"]
    if kind := base.identity().get("quantization"):
        full = untouched(tuned, quantized=False)
        result["quantization"] = {"kind": kind, **changed(base, full, collated(False), collated(True), max_new_tokens)}
    device = str(tuned.backbone.embedding.weight.device)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    return {**result, "base": base.identity(), "machine": machine}


def _ids(vlm: VLM, sample: Sample) -> Tensor:
    return vlm.encode(sample)["input_ids"]


def untouched(tuned: VLM, quantized: bool = True) -> VLM:
    """A VLM without twin experts over a backbone that is loaded again from where the tuned one came.

    `quantized`: held as the tuned one's is; otherwise as it was loaded.
    """
    backbone = type(tuned.backbone)(**tuned.backbone.init_args)
    kind = tuned.identity().get("quantization") if quantized else None
    return PlainVLM(backbone, train=(), quantization=kind).eval().to(tuned.backbone.embedding.weight.device)


def understanding_samples(shards: str | Sequence[str], limit: int) -> tuple[list[Sample], str]:
    """The first `limit` readable understanding records of the shards, with their images, and the manifest's sha256."""
    manifest = index_shards(shards)
    asked = (sample for sample in ShardReader(manifest) if sample.task == UNDERSTANDING)
    samples = [*islice(asked, limit)]
    if not samples:
        seen = f"{without_secrets(str(shards))}: seen no record of task understanding"
        raise ValueError(f"{seen}, expected some to compare the models on")
    return samples, manifest.sha256
