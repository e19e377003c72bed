"""Several conversations behind one shared prefix: the picture is read once, each branch sees the prefix and itself.

Legend: B rows, T positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PAD_BRANCH = -1


def branch_mask(query_BQ: Tensor, key_BK: Tensor | None = None) -> Tensor:
    """Bool [B, 1, Q, K], True = may look: causal, to the prefix (branch 0) and to the own branch.

    The queries are the last Q of the K positions (all of them by default). Padding (branch -1) sees padding alone, so
    that no row of the mask is empty. Of several levels [A, B, Q], questions and their steps, each has to allow it.
    """
    key_BK = query_BQ if key_BK is None else key_BK
    if query_BQ.ndim == 3:
        return torch.stack([branch_mask(*level) for level in zip(query_BQ, key_BK, strict=True)]).all(0)
    queries, keys = query_BQ.shape[1], key_BK.shape[1]
    causal_QK = torch.ones(queries, keys, dtype=torch.bool, device=key_BK.device).tril(keys - queries)
    query, key = query_BQ[:, :, None], key_BK[:, None, :]
    return (causal_QK & ((key == query) | ((key == 0) & (query != PAD_BRANCH))))[:, None]


def within(mask_BQK: Tensor, window: int) -> Tensor:
    """The mask without what is `window` or more seen tokens back, as sliding-window layers want it.

    Distances are counted along what a query sees: in a branch, the prefix stands right before it. What a query sees
    ahead stays.
    """
    queries, keys = mask_BQK.shape[-2:]
    behind = mask_BQK & torch.ones(queries, keys, dtype=torch.bool, device=mask_BQK.device).tril(keys - queries)
    return mask_BQK & (behind.flip(-1).cumsum(-1).flip(-1) <= window)


def both_ways(mask_BQK: Tensor, block_BT: Tensor) -> Tensor:
    """The mask [B, 1, T, T] with sight in both directions inside of a block; -1 is no block."""
    query, key = block_BT[:, :, None], block_BT[:, None, :]
    return mask_BQK | ((query == key) & (query >= 0))[:, None]


def runs(of_picture_BT: Tensor) -> Tensor:
    """[B, T] a number for every run of True, -1 elsewhere."""
    before_BT = torch.nn.functional.pad(of_picture_BT, (1, 0))[:, :-1]
    return torch.where(of_picture_BT, (of_picture_BT & ~before_BT).cumsum(1), -1)


def pack_questions(rows: Sequence[Mapping[str, Any]], image_id: int) -> list[dict[str, Any]]:
    """Encoded rows of questions about the same pictures as one row: the pictures once, the questions behind them.

    What all of them begin with, system prompt and pictures, becomes the prefix; each question's own tokens are a branch
    with the positions that they have in a row of their own. Rows stay apart where they have to: those of different
    tasks, since a skill's experts change the hidden states of the pictures; and those that don't share all of their
    pictures in the prefix. A packed row has `branch` [T] and, a question, lists `step_ids` and `columns`: the place of
    each of its tokens in the packed row. Its `samples` and `row_valid` are lists too.
    """
    packed, groups = [], dict[Any, list[Mapping[str, Any]]]()
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    for group in groups.values():
        shared = _shared_prefix(group)
        pictures = max(int((row["input_ids"] == image_id).sum()) for row in group)
        whole = int((group[0]["input_ids"][:shared] == image_id).sum()) == pictures
        packed += [_packed(group, shared)] if len(group) > 1 and shared and whole else [dict(row) for row in group]
    return packed


def _shared_prefix(rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens that all rows begin with, positions included, answers left out."""
    length = min(int((row["step_ids"] < 0).cumprod(0).sum()) for row in rows)
    same = torch.ones(length, dtype=torch.bool)
    for row in rows[1:]:
        for name in ("input_ids", "position_ids"):
            if name in row:
                equal = row[name][..., :length] == rows[0][name][..., :length]
                same &= equal if equal.ndim == 1 else equal.all(0)
    return int(same.cumprod(0).sum())


def _packed(rows: Sequence[Mapping[str, Any]], shared: int) -> dict[str, Any]:
    first = rows[0]
    ids, branch, columns = [first["input_ids"][:shared]], [torch.zeros(shared, dtype=torch.long)], []
    positions = [_positions(first)[..., :shared]]
    length = shared
    for number, row in enumerate(rows, start=1):
        own = len(row["input_ids"]) - shared
        ids.append(row["input_ids"][shared:])
        branch.append(torch.full((own,), number))
        positions.append(_positions(row)[..., shared:])
        columns.append(torch.cat([torch.arange(shared), torch.arange(length, length + own)]))
        length += own
    return {
        **first,
        "input_ids": torch.cat(ids),
        "position_ids": torch.cat(positions, -1),
        "branch": torch.cat(branch),
        "step_ids": [row["step_ids"] for row in rows],
        "columns": columns,
        "sample": [row["sample"] for row in rows],
    }


def _positions(row: Mapping[str, Any]) -> Tensor:
    return row.get("position_ids", torch.arange(len(row["input_ids"])))


def question_places(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Where the tokens of `step_ids` [Q, L] stand in [B, T]: the row of each question [Q], the columns [Q, L].

    Without packed rows question and row, and their columns, are the same.
    """
    if "columns" in batch:
        return batch["question_rows"], batch["columns"]
    step_ids_QL = batch["step_ids"]
    rows_Q, columns_L = (torch.arange(size, device=step_ids_QL.device) for size in step_ids_QL.shape)
    return rows_Q, columns_L.expand_as(step_ids_QL)


def of_questions(tokens_N: Tensor, flat_QL: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Which of the tokens, flat positions [N] in [B, T], each question has: (places in N, questions), in its order.

    flat_QL: the flat position of each of a question's tokens, -1 at pads. A token of a prefix is every question's.
    """
    place_BT = torch.full((positions,), -1, device=tokens_N.device)
    place_BT[tokens_N] = torch.arange(len(tokens_N), device=tokens_N.device)
    place_QL = torch.where(flat_QL >= 0, place_BT[flat_QL.clamp(min=0)], -1)
    question_N, column_N = (place_QL >= 0).nonzero(as_tuple=True)
    return place_QL[question_N, column_N], question_N


def right_padded(valid_BT: Tensor) -> bool:
    """Whether no real token stands behind a pad: causal attention then needs no mask."""
    return not bool((valid_BT[:, 1:] & ~valid_BT[:, :-1]).any())


def count_on(position_ids: Tensor, valid_BT: Tensor) -> Tensor:
    """Positions [..., B, T] of right-padded rows, counted on through the pads.

    A position that goes back means a new sequence to transformers, which would build a mask for it.
    """
    last = position_ids.amax(-1, keepdim=True)
    return torch.where(valid_BT, position_ids, last + (~valid_BT).cumsum(1))


def pad_left(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows with their padding on the left, as generation wants them."""
    valid_BT = batch["valid"]
    # stable: pads (False) first, real tokens behind them in their order
    order_BT = valid_BT.to(torch.int8).argsort(dim=1, stable=True)
    moved = {name: batch[name].gather(1, order_BT) for name in ("input_ids", "valid", "step_ids")}
    positions = batch["position_ids"]
    moved["position_ids"] = positions.gather(-1, order_BT.expand_as(positions))
    return {**batch, **moved}


def joined(batches: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """Collated batches, padded on the right, as one, with what all of them have: text has no `features`."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": pad_id, "valid": False, "position_ids": 0, "step_ids": -1}

    def join(name: str) -> Any:
        values = [batch[name] for batch in batches]
        if isinstance(values[0], list):
            return [item for value in values for item in value]
        if name not in fill:
            return torch.cat(values)
        padded = [torch.nn.functional.pad(v, (0, length - v.shape[-1]), value=fill[name]) for v in values]
        return torch.cat(padded, -2)

    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: join(name) for name in names} if len(batches) > 1 else dict(batches[0])


def repeated(batch: Mapping[str, Any], group: int) -> dict[str, Any]:
    """A batch of prompts with every row `group` times, for a model whose layers can't branch behind a prompt."""
    rows: dict[str, Any] = {
        name: value.repeat_interleave(group, -2 if name == "position_ids" else 0)
        for name, value in batch.items()
        if torch.is_tensor(value) and value.ndim and (name == "position_ids" or len(value) == len(batch["input_ids"]))
    }
    if "pictures" in batch:  # of each row that has some
        rows["pictures"] = [one for one in batch["pictures"] for _ in range(group)]
    return rows


def pack_groups(
    batch: Mapping[str, Any], completions: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> dict[str, Any]:
    """A batch of prompts, padded on any side, with the G completions of each as branches behind it.

    The prompt and its pictures stand in the row once. Beside the tensors of the rows there are, one entry for every
    token of a completion: `rows` and `predictors` (where its prediction comes from), `targets` (the token), and
    `places` (completion, step), where the completions of prompt b are b * G, b * G + 1 ...
    """
    rows: dict[str, list[Tensor]] = {"input_ids": [], "branch": [], "position_ids": []}
    index: dict[str, list[int]] = {"rows": [], "predictors": [], "targets": [], "completion": [], "step": []}
    number = 0
    for b, group in enumerate(completions):
        kept = batch["valid"][b].nonzero().squeeze(1).cpu()
        ids, positions = batch["input_ids"][b].cpu()[kept].tolist(), batch["position_ids"][..., b, :].cpu()[..., kept]
        start = int(positions.max()) + 1
        prompt, branch, behind = len(ids), [0] * len(ids), list[int]()
        for g, completion in enumerate(group, start=1):
            before = [prompt - 1, *range(len(ids), len(ids) + len(completion) - 1)]
            index["rows"] += [b] * len(completion)
            index["predictors"] += before[: len(completion)]
            index["targets"] += completion
            index["completion"] += [number] * len(completion)
            index["step"] += range(len(completion))
            ids, branch = [*ids, *completion], branch + [g] * len(completion)
            behind += range(start, start + len(completion))
            number += 1
        rows["input_ids"].append(torch.tensor(ids))
        rows["branch"].append(torch.tensor(branch))
        tail = torch.tensor(behind, dtype=positions.dtype).expand(*positions.shape[:-1], -1)
        rows["position_ids"].append(torch.cat([positions, tail], -1))
    device, length = batch["input_ids"].device, max(map(len, rows["input_ids"]))
    fill = {"input_ids": pad_id, "branch": PAD_BRANCH, "position_ids": 0}
    padded = {
        name: torch.stack(
            [torch.nn.functional.pad(row, (0, length - row.shape[-1]), value=fill[name]) for row in parts], -2
        ).to(device)
        for name, parts in rows.items()
    }
    tokens = {name: torch.tensor(values, dtype=torch.long, device=device) for name, values in index.items()}
    return {
        **{name: value for name, value in batch.items() if name not in ("step_ids", "samples")},
        **padded,
        "valid": padded["branch"] != PAD_BRANCH,
        "rows": tokens["rows"],
        "predictors": tokens["predictors"],
        "targets": tokens["targets"],
        "places": (tokens["completion"], tokens["step"]),
        "num_completions": number,
    }
