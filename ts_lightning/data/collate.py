"""Rows to a padded batch.  B rows, T tokens, N pictures, S picture side."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def collate(rows: list[dict[str, Any]], pad_id: int, side: str = "right") -> dict[str, Any]:
    """Pad encoded rows on `side` ("right" for training, "left" for generation).

    Returns `input_ids` [B, T], `valid` bool [B, T], `position_ids` [B, T] (0 at pads, else counting valid tokens;
    [A, B, T] where rows bring positions of A axes), `step_ids` [B, T] (-1 at pads), `pixel_values` uint8 [sum N, 3, S,
    S] (or the rows' patches and `image_grid` [sum N, 3]; or `pictures`, a dict of tensors for each row that has any, as
    its model's own processor makes them), `images_per_row` [B], `task` [B] (0 understanding, k the k-th
    skill), `row_valid` bool [B] (False: a padding or unreadable row, not counted), `samples`.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side: seen {side!r}, expected 'right' or 'left'")
    length = max(len(row["input_ids"]) for row in rows)
    valid = torch.stack([_pad(torch.ones(len(row["input_ids"]), dtype=torch.bool), length, 0, side) for row in rows])
    positions = (valid.cumsum(1) - 1).clamp(min=0) * valid
    if "position_ids" in rows[0]:
        positions = torch.stack([_pad(row["position_ids"], length, 0, side) for row in rows], -2)
    return {
        "input_ids": torch.stack([_pad(row["input_ids"], length, pad_id, side) for row in rows]),
        "valid": valid,
        "position_ids": positions,
        "step_ids": torch.stack([_pad(row["step_ids"], length, -1, side) for row in rows]),
        **_pictures(rows),
        "task": torch.tensor([row["task"] for row in rows]),
        "row_valid": torch.tensor([row.get("row_valid", True) for row in rows]),
        "samples": [row["sample"] for row in rows],
    }


def deal(rows: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """Rows in `count` micro-batches of like lengths, the longest first; sizes differ by one at most.

    The loss is a sum over the global batch: which rows share a micro-batch changes padding alone.
    """
    by_length = sorted(rows, key=lambda row: -len(row["input_ids"]))  # stable: ties stay in the stream's order
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [by_length[start:stop] for start, stop in pairwise(cuts)]


def _pictures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if "pictures" in rows[0]:
        counts = torch.tensor([len(row["sample"].images) for row in rows])
        return {"pictures": [row["pictures"] for row in rows if row["pictures"]], "images_per_row": counts}
    names = [name for name in ("pixel_values", "image_grid") if name in rows[0]]
    return {
        **{name: torch.cat([row[name] for row in rows]) for name in names},
        "images_per_row": torch.tensor([len(row[names[-1]]) for row in rows]),
    }


def _pad(values: Tensor, length: int, fill: int, side: str) -> Tensor:
    pad = values.new_full((*values.shape[:-1], length - values.shape[-1]), fill)
    return torch.cat([values, pad] if side == "right" else [pad, values], -1)
