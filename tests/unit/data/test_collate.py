"""Padding against numbers written down by hand."""

from random import Random

import pytest
import torch

from ts_lightning.data.collate import collate, deal, join, spread


def row(ids: list[int], steps: list[int], images: int, task: int, **more: object) -> dict:
    pixels = torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(images, 3, 2, 2)
    values = {"input_ids": torch.tensor(ids), "step_ids": torch.tensor(steps), "pixel_values": pixels, "task": task}
    return values | {"sample": f"s{ids[0]}"} | more


ROWS = [row([5, 6, 7], [-1, 0, 1], 2, 1), row([8], [-1], 0, 0), row([9, 4], [-1, 0], 1, 1, row_valid=False)]


def test_right_padding_for_training():
    batch = collate(ROWS, pad_id=2, side="right")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2], [9, 4, 2]]
    assert batch["valid"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]
    assert batch["step_ids"].tolist() == [[-1, 0, 1], [-1, -1, -1], [-1, 0, -1]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 0]
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["images_per_row"].tolist() == [2, 0, 1]
    assert batch["task"].tolist() == [1, 0, 1]
    assert batch["row_valid"].tolist() == [True, True, False]
    assert batch["samples"] == ["s5", "s8", "s9"]


def test_left_padding_for_generation():
    batch = collate(ROWS, pad_id=2, side="left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [2, 2, 8], [2, 9, 4]]
    assert batch["valid"].tolist() == [[True, True, True], [False, False, True], [False, True, True]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert batch["step_ids"].tolist() == [[-1, 0, 1], [-1, -1, -1], [-1, -1, 0]]


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="side: seen 'middle', expected 'right' or 'left'"):
        collate(ROWS, 0, "middle")


def test_rows_are_dealt_by_length_longest_first():
    rows = [row([n] * length, [-1] * length, 0, 0) for n, length in enumerate([2, 5, 2, 9, 1, 5, 3])]
    dealt = [[int(one["input_ids"][0]) for one in part] for part in deal(rows, 3)]
    assert dealt == [[3, 1], [5, 6], [0, 2, 4]]
    assert deal(rows, 1)[0][0] is rows[3]
    assert [one for part in deal(rows, 3, by_length=False) for one in part] == rows
    assert [len(part) for part in deal(rows, 7)] == [1] * 7


def test_rows_are_joined_behind_each_other() -> None:
    def row(first: int, length: int, task: int) -> dict:
        ids = torch.arange(first, first + length)
        pixels = torch.full((1, 3, 2, 2), first, dtype=torch.uint8)
        steps = torch.where(torch.arange(length) < 1, -1, 0)
        return {"input_ids": ids, "step_ids": steps, "pixel_values": pixels, "task": task, "sample": first}

    batch = collate(join([row(10, 3, 1), row(20, 2, 0), row(30, 2, 1)]), pad_id=0)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 30, 31], [20, 21, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["record"].tolist() == [[1, 1, 1, 2, 2], [1, 1, -1, -1, -1]]
    assert batch["question_rows"].tolist() == [0, 0, 1]
    assert batch["columns"].tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 0]]
    assert batch["step_ids"].tolist() == [[-1, 0, 0], [-1, 0, -1], [-1, 0, -1]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 30, 20]  # in the order of their rows
    assert (batch["task"].tolist(), batch["samples"]) == ([1, 0], [10, 30, 20])


def test_rows_are_spread_by_their_tokens() -> None:
    rows = [{"input_ids": torch.zeros(n), "task": 1} for n in (3, 9, 4, 5, 1)]
    lengths = [[len(row["input_ids"]) for row in group] for group in spread(rows, 2)]
    assert lengths == [[9, 3], [5, 4, 1]]
    two = [*rows, {"input_ids": torch.zeros(7), "task": 0}]
    tasks = [[(len(row["input_ids"]), row["task"]) for row in group] for group in spread(two, 3)]
    assert tasks == [[(9, 1), (3, 1)], [(5, 1), (4, 1), (1, 1)], [(7, 0)]]
    few = [{"input_ids": torch.zeros(n), "task": n % 2} for n in (2, 100, 200, 1)]
    assert [len(group) for group in spread(few, 4)] == [1] * 4
    assert [{row["task"] for row in group} for group in spread(few, 2)] == [{0}, {1}]
    assert sorted(len(group) for group in spread(few, 1)) == [4]


@pytest.mark.parametrize("tasks", [1, 3])
def test_joined_rows_of_two_to_six_pictures_hardly_have_padding(tasks: int) -> None:
    random = Random(0)
    lengths = [576 * random.randint(2, 6) + random.randint(30, 300) for _ in range(64)]
    rows = [row([n] * length, [-1] * length, 1, n % 7 % tasks) for n, length in enumerate(lengths)]
    batches = [collate(join(group), pad_id=0) for group in spread(rows, 8)]
    assert sum(int(batch["valid"].sum()) for batch in batches) == sum(len(one["input_ids"]) for one in rows)
    positions = sum(batch["valid"].numel() for batch in batches)
    assert 1 - sum(int(batch["valid"].sum()) for batch in batches) / positions <= 0.03
