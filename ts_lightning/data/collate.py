"""Rows to a padded batch.  B rows, T tokens, N pictures, S picture side."""

from itertools import accumulate, pairwise
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

    Rows of several questions (`models.packing.pack_questions`) have `branch` [B, T] beside that, and a line for each of
    all Q questions: `step_ids` [Q, L] as in a row of its own, `question_valid` bool [Q, L], `question_rows` [Q],
    `columns` [Q, L] (where in its row each token stands, 0 at pads), `row_valid` [Q] and `samples`; `side` is then that
    of the pads in these lines, rows are padded on the right. Where rows were joined (`join`), `record` [B, T] numbers
    what sees itself alone, from 1 on, -1 at pads.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side: seen {side!r}, expected 'right' or 'left'")
    if any("columns" in row for row in rows):
        return _packed(rows, pad_id, side)
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


def _packed(rows: list[dict[str, Any]], pad_id: int, side: str) -> dict[str, Any]:
    """A batch of rows of which some have several questions."""
    rows = [row if "columns" in row else _alone(row) for row in rows]
    columns = [one for row in rows for one in row["columns"]]
    longest = max(map(len, columns))
    questions = [len(row["columns"]) for row in rows]
    # one row's tensors: its questions' own are put in below
    batch = collate(
        [{k: v for k, v in row.items() if k != "columns"} | {"step_ids": row["branch"]} for row in rows], pad_id
    )
    if "record" in rows[0]:
        length = batch["input_ids"].shape[1]
        batch["record"] = torch.stack([_pad(row["record"], length, -1, "right") for row in rows])
    return batch | {
        "branch": batch["step_ids"],
        "step_ids": torch.stack([_pad(one, longest, -1, side) for row in rows for one in row["step_ids"]]),
        "columns": torch.stack([_pad(one, longest, 0, side) for one in columns]),
        "question_valid": torch.stack([_pad(torch.ones_like(one) > 0, longest, 0, side) for one in columns]),
        "question_rows": torch.arange(len(rows)).repeat_interleave(torch.tensor(questions)),
        "row_valid": torch.tensor([row.get("row_valid", True) for row in _apart(rows) for _ in row["columns"]]),
        "samples": [one for row in rows for one in row["sample"]],
    }


def _alone(row: dict[str, Any]) -> dict[str, Any]:
    """A row of one question in the form of those with several."""
    columns = torch.arange(len(row["input_ids"]))
    more = {"branch": torch.zeros_like(columns), "step_ids": [row["step_ids"]], "columns": [columns]}
    return {"position_ids": columns, **row, **more, "sample": [row["sample"]]}


def join(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one task one behind the other, as one row without padding in which each of them sees itself alone."""
    by_task: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row if "columns" in row else _alone(row))
    return [_joined(group) for group in by_task.values()]


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    starts = accumulate((len(row["input_ids"]) for row in rows), initial=0)
    return {
        "task": rows[0]["task"],
        "parts": rows,  # for their pictures
        **{name: torch.cat([row[name] for row in rows], -1) for name in ("input_ids", "position_ids", "branch")},
        "record": torch.cat([torch.full_like(row["branch"], n) for n, row in enumerate(rows, start=1)]),
        "step_ids": [one for row in rows for one in row["step_ids"]],
        "columns": [one + start for row, start in zip(rows, starts, strict=False) for one in row["columns"]],
        "sample": [one for row in rows for one in row["sample"]],
    }


def _apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they were before they were joined."""
    return [part for row in rows for part in row.get("parts", [row])]


def spread(rows: list[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """Rows in `count` groups of about as many tokens: the longest first, each into the group that has the fewest.

    Tasks have groups of their own, as far as there are enough: joined rows of two tasks are padded to the longer one.
    """
    by_task: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    if 1 < len(by_task) <= count:
        tokens = {task: sum(len(row["input_ids"]) for row in own) for task, own in by_task.items()}
        parts = dict.fromkeys(by_task, 1)
        for _ in range(count - len(parts)):  # one more to the task whose groups are the longest and can be halved
            fullest = max(tokens, key=lambda task: (parts[task] < len(by_task[task])) * tokens[task] / parts[task])
            parts[fullest] += 1
        return [group for task, own in by_task.items() for group in spread(own, parts[task])]
    groups: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    sizes = [0] * count
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        place = sizes.index(min(sizes))
        groups[place].append(row)
        sizes[place] += len(row["input_ids"])
    return groups


def deal(rows: list[dict[str, Any]], count: int, by_length: bool = True) -> list[list[dict[str, Any]]]:
    """Rows in `count` micro-batches of like lengths, the longest first; sizes differ by one at most.

    The loss is a sum over the global batch: which rows share a micro-batch changes padding alone. Where micro-batches
    make steps of their own (GRPO's mini-batches) it is more than that: not `by_length` they stay in their order.
    """
    if by_length:
        rows = sorted(rows, key=lambda row: -len(row["input_ids"]))  # stable: ties stay in the stream's order
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [rows[start:stop] for start, stop in pairwise(cuts)]


def samples_of(row: dict[str, Any]) -> list[Any]:
    """The questions of a row."""
    return row["sample"] if isinstance(row["sample"], list) else [row["sample"]]


def seen_pairs(row: dict[str, Any]) -> int:
    """Pairs of a token and one that it sees, itself included: causal, a branch behind its prefix."""

    def causal(length: int) -> int:
        return length * (length + 1) // 2

    if "columns" not in row:
        return causal(len(row["input_ids"]))
    prefix = int((row["branch"] == 0).sum())
    own = [len(columns) - prefix for columns in row["columns"]]
    return causal(prefix) + sum(causal(length) + length * prefix for length in own)


def _pictures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = _apart(rows)
    if "pictures" in rows[0]:
        counts = torch.tensor([len(samples_of(row)[0].images) for row in rows])
        return {"pictures": [row["pictures"] for row in rows if row["pictures"]], "images_per_row": counts}
    names = [name for name in ("pixel_values", "image_grid") if name in rows[0]]
    return {
        **{name: torch.cat([row[name] for row in rows]) for name in names},
        "images_per_row": torch.tensor([len(row[names[-1]]) for row in rows]),
    }


def _pad(values: Tensor, length: int, fill: int, side: str) -> Tensor:
    pad = values.new_full((*values.shape[:-1], length - values.shape[-1]), fill)
    return torch.cat([values, pad] if side == "right" else [pad, values], -1)
