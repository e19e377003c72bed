"""Encoded rows to a batch on the device of the model that reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ts_lightning.data.collate import collate
from ts_lightning.models import VLM


def batch_for(vlm: VLM, rows: Sequence[Mapping[str, Any]], side: str = "left") -> dict[str, Any]:
    """`collate` of the rows on the vlm's device; padded on the left for generation, on the "right" for logits."""
    return moved(collate([dict(row) for row in rows], vlm.pad_id, side), vlm.backbone.embedding.weight.device)


def moved(value: Any, device: torch.device) -> Any:
    """The tensors inside of dicts and lists, on a device."""
    if torch.is_tensor(value):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return [moved(part, device) for part in value] if isinstance(value, list) else value
