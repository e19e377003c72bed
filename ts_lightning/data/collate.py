"""Rows to a padded batch.  B rows, T tokens, N pictures, S picture side."""

from typing import Any

import torch
from torch import Tensor


def collate(rows: list[dict[str, Any]], pad_id: int, side: str = "right") -> dict[str, Any]:
    """Pad encoded rows on `side` ("right" for training, "left" for generation).

    Returns `input_ids` [B, T], `valid` bool [B, T], `position_ids` [B, T] (0 at pads, else counting valid tokens),
    `step_ids` [B, T] (-1 at pads), `pixel_values` uint8 [sum N, 3, S, S], `images_per_row` [B], `task` [B]
    (0 understanding, 1 grounding), `row_valid` bool [B] (False: a padding or unreadable row, not counted), `samples`.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side: seen {side!r}, expected 'right' or 'left'")
    length = max(len(row["input_ids"]) for row in rows)
    valid = torch.stack([_pad(torch.ones(len(row["input_ids"]), dtype=torch.bool), length, 0, side) for row in rows])
    return {
        "input_ids": torch.stack([_pad(row["input_ids"], length, pad_id, side) for row in rows]),
        "valid": valid,
        "position_ids": (valid.cumsum(1) - 1).clamp(min=0) * valid,
        "step_ids": torch.stack([_pad(row["step_ids"], length, -1, side) for row in rows]),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "images_per_row": torch.tensor([len(row["pixel_values"]) for row in rows]),
        "task": torch.tensor([row["task"] for row in rows]),
        "row_valid": torch.tensor([row.get("row_valid", True) for row in rows]),
        "samples": [row["sample"] for row in rows],
    }


def _pad(values: Tensor, length: int, fill: int, side: str) -> Tensor:
    pad = values.new_full((length - len(values),), fill)
    return torch.cat([values, pad] if side == "right" else [pad, values])
