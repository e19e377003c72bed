"""Rows of several questions through the loader: what is read, counted, left apart and refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.data.test_write import written
from tests.unit.data_samples import encode
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.models.packing import pack_questions


class Packing:
    """Rows of five tokens, the first three of which all questions share; question `broken` has none."""

    packs = True

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __call__(self, one: Any, for_generation: bool = False) -> dict[str, Any]:
        number = int(one.id.split("/")[1])
        if number == self.broken:
            raise ValueError(f"{one.key}: seen 9000 tokens, expected at most 2048")
        return {
            "input_ids": torch.tensor([1, 9, 9, 10 + number, 20 + number]),
            "step_ids": torch.tensor([-1, -1, -1, -1, 0]),
            "pixel_values": torch.full((1, 3, 2, 2), number, dtype=torch.uint8),
            "task": 1,
        }

    def pack(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return pack_questions(rows, 9)


def module(folder: Path, encoder: Any, **options: Any) -> ShardDataModule:
    sizes = {"global_batch_size": 4, "micro_batch_size": 2, "questions_per_row": 8}
    data = ShardDataModule(ShardSource(f"{folder}/*.tar"), encode=encoder, pad_id=0, **{**sizes, **options})
    data.setup("fit")
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_is_in_the_batch_once(tmp_path: Path, workers: int) -> None:
    written(tmp_path)  # questions 0, 2, 5, 6 about one picture, 1 and 4 about another, 3 and 7 alone
    (batch,) = module(tmp_path, Packing(), num_workers=workers).train_dataloader()
    assert sorted(batch["ids"]) == [f"test/{n}" for n in range(8)]
    assert batch["num_questions"] == 8
    first, second = batch["micro_batches"]
    assert first["valid"].sum(1).tolist() == [3 + 4 * 2, 3 + 2 * 2]
    assert second["valid"].sum(1).tolist() == [5, 5]
    assert len(first["pixel_values"]) == len(second["pixel_values"]) == 2
    assert [sample.id for sample in first["samples"]] == [f"test/{n}" for n in (0, 2, 5, 6, 1, 4)]
    assert first["question_rows"].tolist() == [0, 0, 0, 0, 1, 1]
    rows, columns = first["question_rows"][:, None], first["columns"]
    assert first["input_ids"][rows, columns].tolist() == [[1, 9, 9, 10 + n, 20 + n] for n in (0, 2, 5, 6, 1, 4)]
    assert "branch" not in second


def test_a_question_that_cannot_be_encoded_leaves_the_others(tmp_path: Path) -> None:
    written(tmp_path)
    data = module(tmp_path, Packing(broken=5), max_bad_fraction=0.2)
    loader = data.train_dataloader()
    (batch,) = loader
    assert sorted(batch["ids"]) == [f"test/{n}" for n in range(8) if n != 5]
    assert sum(int(micro["row_valid"].sum()) for micro in batch["micro_batches"]) == 7
    assert sum(int((micro["step_ids"] >= 0).any(1).sum()) for micro in batch["micro_batches"]) == 7
    assert [*loader.bad_records[0].seen.values()] == ["seen 9000 tokens, expected at most 2048"]


def test_what_can_not_share_rows_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ValueError, match=r"^data.questions_per_row: seen 8 for a model whose questions can't share a"):
        module(tmp_path, encode).train_dataloader()
    data = module(tmp_path, Packing())
    prompts = SimpleNamespace(trains_on_prompts=True, vlm=None)
    sharing = {"rank": 0, "num_replicas": 1}
    data.trainer = SimpleNamespace(distributed_sampler_kwargs=sharing, overfit_batches=0, lightning_module=prompts)
    with pytest.raises(ValueError, match=r"^data.questions_per_row: seen 8 for training on prompts, expected 1"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"^data.questions_per_row: seen 0, expected at least 1$"):
        module(tmp_path, encode, questions_per_row=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_questions_of_a_picture_together(tmp_path: Path, workers: int) -> None:
    (path,) = written(tmp_path)
    options = {"val": {"all": ShardSource(str(path))}, "eval_batch_size": 6, "max_bad_fraction": 1.0}
    data = module(tmp_path, Packing(broken=4), num_workers=workers, **options)
    data.setup("validate")
    first, last = data.val_dataloader()[0]
    assert [one.id for one in first["samples"]] == [f"test/{n}" for n in (0, 2, 5, 6, 1, 3)]  # 3 stands in for 4
    assert first["row_valid"].tolist() == [True] * 5 + [False]
    assert first["question_rows"].tolist() == [0, 0, 0, 0, 1, 2]
    assert len(first["pixel_values"]) == 3
    rows, columns = first["question_rows"][:, None], first["columns"]
    assert first["input_ids"][rows, columns].tolist() == [[1, 9, 9, 10 + n, 20 + n] for n in (0, 2, 5, 6, 1, 3)]
    assert [one.id for one in last["samples"]] == ["test/3", "test/7"]
    assert "columns" not in last


def test_a_row_has_eight_prompts_of_one_task_at_most(tmp_path: Path) -> None:
    (path,) = written(tmp_path, [1] * 12)

    class Tasks(Packing):
        def __call__(self, one: Any, for_generation: bool = False) -> dict[str, Any]:
            return super().__call__(one) | {"task": int(one.id == "test/9")}

    data = module(tmp_path, Tasks(), questions_per_row=1, val={"all": ShardSource(str(path))})
    data.setup("validate")
    (batch,) = data.val_dataloader()[0]
    assert batch["question_rows"].bincount().tolist() == [8, 1, 1, 2]
    assert [one.id for one in batch["samples"]] == [f"test/{n}" for n in range(12)]
